"""A Space made in one call."""

from taia_hub import hub
from taia_hub.space.making import plan_space, publish_space, write_space

GIT = "git+https://example.org/taia-hub.git"


def create_space(repo, *, out=None, token=None, private=None, link=True, package=GIT, **wanted):
    """Plans a Space and carries the plan out, as `taia space create` does; by default without a bundle's many files."""
    plan = plan_space(repo, hub.Commit(private=private, token=token), out=out, package=package, **wanted)
    return write_space(plan) if out is not None else publish_space(plan, link=link)

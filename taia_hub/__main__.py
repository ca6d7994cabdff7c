"""`python -m taia_hub`."""

from taia_hub.cli import main

if __name__ == "__main__":
    main()

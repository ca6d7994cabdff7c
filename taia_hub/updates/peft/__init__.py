"""Updates that PEFT makes: its adapter on a base model, read strictly, each layer obeying the switch."""

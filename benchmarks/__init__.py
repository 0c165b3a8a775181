"""How fast this trains, beside others' ways of training the same."""

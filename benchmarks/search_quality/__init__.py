"""How good is voxtune's search at the budget of 8 to 64 trainings? See docs/search.md."""

"""The recipes, as they come with the installed package: `python -m rlhf_recipes.recipes copy ppo`."""

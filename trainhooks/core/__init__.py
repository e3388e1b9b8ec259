"""What everything may use: schedules, variables, token counts, text for people. Imports nothing of the package."""

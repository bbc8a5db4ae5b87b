"""How much goes, and which: budgets, schedules and exact cuts."""

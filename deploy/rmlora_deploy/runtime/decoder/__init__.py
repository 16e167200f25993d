"""Running a language model token by token: its cache of keys and values, its adapters, and the rows that advance together."""

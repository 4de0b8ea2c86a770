"""One member, put together: its thread, its services, its upkeep, its stop."""

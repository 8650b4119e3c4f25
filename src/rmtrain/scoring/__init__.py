"""From groups to rewards."""

"""What a search that learns evaluates next: functions of its rows and its seed, and who asks them."""

"""What scheduler and worker share: tables, states, payloads and settings. Knows neither of them."""

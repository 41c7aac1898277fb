"""The workers of a host as something that is scaled and reloaded, whoever runs them."""

"""The built-in chat: what runs when no application is named."""

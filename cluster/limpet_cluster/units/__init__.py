"""limpet as units of systemd: rendered, installed, operated."""

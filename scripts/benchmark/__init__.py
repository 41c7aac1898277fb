"""Compares limpet with Node's socket.io and with python-socketio on one machine, in one run."""

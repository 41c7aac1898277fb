"""Engine.IO, protocol revision 4: sessions over polling, over WebSocket, or changing over."""

"""Engine.IO, protocol revision 4: sessions that run over polling, over WebSocket, or change over."""

from limpet import Server, Socket

io = Server(cors_allowed_origins="*")


@io.on("enter")
async def enter(socket: Socket, room: str) -> list[str]:
    await socket.join(room)
    return [member.user for member in await io.presence.list(room)]


@io.on("say")
def say(socket: Socket, room: str, text: str) -> None:
    io.to(room).emit("said", text)

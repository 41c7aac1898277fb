// The benchmark's events on socket.io in one process; node_cluster.js uses `serve` for its workers.
"use strict";

const http = require("http");
const { Server } = require("socket.io");

// Seconds and bytes come from the environment, so that every peer is told the same.
const options = {
  pingInterval: 1000 * Number(process.env.BENCH_PING_INTERVAL || 25),
  pingTimeout: 1000 * Number(process.env.BENCH_PING_TIMEOUT || 20),
  maxHttpBufferSize: Number(process.env.BENCH_MAX_MESSAGE || 1e6),
};

function serve() {
  const server = http.createServer();
  const io = new Server(server, options);
  io.on("connection", (socket) => {
    socket.on("echo", (data, ack) => ack(data));
    socket.on("bin", (data, ack) => ack(data));
    socket.on("join", (room, ack) => {
      socket.join(room);
      ack(room);
    });
    socket.on("broadcast", (room, payload) => io.to(room).emit("msg", payload));
    socket.on("whoami", (ack) => ack(process.pid));
    socket.on("collect", (ack) => {
      if (global.gc) global.gc();
      ack(true);
    });
  });
  return { io, server };
}

module.exports = { serve };

if (require.main === module) {
  serve().server.listen(Number(process.argv[2]), "127.0.0.1", 4096);
}

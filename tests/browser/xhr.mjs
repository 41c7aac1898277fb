// XMLHttpRequest as far as a client of polling needs it, over Node's own HTTP client.
import { request } from "node:http";

export class XMLHttpRequest {
  readyState = 0;
  status = 0;
  responseText = "";
  timeout = 0;
  withCredentials = false;
  onreadystatechange = null;
  headers = {};

  open(method, uri) {
    Object.assign(this, { method, uri });
    this.change(1);
  }

  setRequestHeader(name, value) {
    if (this.readyState !== 1) throw new Error("InvalidStateError");
    this.headers[name] = value;
  }

  send(body) {
    const options = { method: this.method, headers: this.headers };
    if (body) options.headers["Content-Length"] = Buffer.byteLength(body);
    this.request = request(this.uri, options, (response) => {
      this.status = response.statusCode;
      response.setEncoding("utf8");
      response.on("data", (text) => (this.responseText += text));
      response.on("end", () => this.change(4));
      response.on("error", () => this.fail());
    });
    this.request.on("error", () => this.fail());
    if (this.timeout) this.timer = setTimeout(() => this.request.destroy(), this.timeout);
    this.request.end(body);
  }

  abort() {
    this.request?.destroy();
    if (this.readyState !== 4) this.fail();
  }

  fail() {
    if (this.readyState === 4) return;
    this.status = 0;
    this.change(4);
  }

  change(state) {
    this.readyState = state;
    if (state === 4) clearTimeout(this.timer);
    this.onreadystatechange?.();
  }
}

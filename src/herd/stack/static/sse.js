// Server-sent events, as the HTML standard reads them ("9.2.6 Interpreting an event stream"), from bytes that may be cut anywhere.

/** @typedef {{ event: string, data: string }} ServerEvent */

export class SseReader {
  constructor() {
    this.decoder = new TextDecoder();
    this.rest = "";
    this.event = "";
    /** @type {string[]} */
    this.lines = [];
  }

  /** @param {Uint8Array} bytes @returns {ServerEvent[]} those that became whole */
  push(bytes) {
    /** @type {ServerEvent[]} */
    const out = [];
    this.rest += this.decoder.decode(bytes, { stream: true });
    let from = 0;
    for (let at = 0; at < this.rest.length; at++) {
      const char = this.rest[at];
      if (char !== "\n" && char !== "\r") continue;
      if (char === "\r" && at === this.rest.length - 1) break;
      this.line(this.rest.slice(from, at), out);
      if (char === "\r" && this.rest[at + 1] === "\n") at++;
      from = at + 1;
    }
    this.rest = this.rest.slice(from);
    return out;
  }

  /** @param {string} line @param {ServerEvent[]} out */
  line(line, out) {
    if (line === "") {
      if (this.lines.length) out.push({ event: this.event, data: this.lines.join("\n") });
      this.event = "";
      this.lines = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.lines.push(value);
    else if (name === "event") this.event = value;
  }
}

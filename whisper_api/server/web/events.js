/** Live events of a job: text/event-stream read with fetch, because EventSource cannot send a key. */

import { ApiError, delay, pause, request } from "./api.js";

// The server sends at least a heartbeat every 15 s; after a longer silence the connection is dead.
const SILENCE = 40_000;
const ENDS = new Set(["completed", "failed", "canceled"]);

/**
 * Follow a job until it ends; a lost connection is resumed after the last event.
 * `onEvent(name, data)` is called for each event, `onTrouble(error)` while the server cannot be reached, and with null when it
 * is back. Resolves to the name of the last event. Throws an ApiError that does not pass, or an AbortError.
 */
export async function follow(jobId, { onEvent, onTrouble, signal }) {
  let last = "";
  let first = 500;
  for (let attempt = 0; ; attempt += 1) {
    const connection = new AbortController();
    const stop = () => connection.abort(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    let watchdog = 0;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => connection.abort(), SILENCE);
    };
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const response = await request(`transcription/${jobId}/events`, { headers, signal: connection.signal });
      // No event comes after the last one: the job has ended.
      if (response.status === 204) return "completed";
      alive();
      onTrouble(null);
      for await (const event of events(response.body, alive)) {
        attempt = 0;
        if (event.id) last = event.id;
        if (event.retry) first = Math.min(event.retry, 2000);
        if (event.data === "") continue;
        onEvent(event.name, JSON.parse(event.data));
        if (ENDS.has(event.name)) return event.name;
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error instanceof ApiError && !error.passes) throw error;
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener("abort", stop);
      connection.abort();
    }
    onTrouble(new ApiError(0, "network", ""));
    await pause(delay(attempt, first), signal);
  }
}

/** Parse the events of a stream (HTML standard, server-sent events); `onBytes` is called whenever data arrives. */
async function* events(stream, onBytes) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = blank();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    onBytes();
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const text = line.endsWith("\r") ? line.slice(0, -1) : line;
      if (text === "") {
        if (event.data !== "" || event.retry) yield event;
        event = { ...blank(), id: event.id };
        continue;
      }
      const colon = text.indexOf(":");
      // A comment: the server's heartbeat.
      if (colon === 0) continue;
      const field = colon < 0 ? text : text.slice(0, colon);
      const content = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
      if (field === "id") event.id = content;
      else if (field === "event") event.name = content;
      else if (field === "data") event.data += (event.data && "\n") + content;
      else if (field === "retry") event.retry = Number(content) || 0;
    }
  }
}

const blank = () => ({ id: "", name: "message", data: "", retry: 0 });

// OpenAI's SDK for Node: as one answer, as a stream, and for Azure.
import fs from "node:fs";
import OpenAI, { AzureOpenAI } from "openai";

const { SERVER_URL, SERVER_KEY, AUDIO_FILE } = process.env;
const told = (call, text) => console.log(JSON.stringify({ call, text }));
const file = () => fs.createReadStream(AUDIO_FILE);

const client = new OpenAI({ baseURL: `${SERVER_URL}/v1`, apiKey: SERVER_KEY });
told("transcriptions", (await client.audio.transcriptions.create({ model: "whisper-1", file: file() })).text);
const verbose = await client.audio.transcriptions.create({
  model: "whisper-1",
  file: file(),
  response_format: "verbose_json",
  timestamp_granularities: ["word"],
});
told("verbose_json", verbose.words.map((word) => word.word).join(" "));
let last;
for await (const event of await client.audio.transcriptions.create({
  model: "gpt-4o-transcribe",
  file: file(),
  stream: true,
})) {
  last = event;
}
told("stream", last.text);
const azure = new AzureOpenAI({ endpoint: SERVER_URL, apiKey: SERVER_KEY, apiVersion: "2024-10-21" });
told("Azure", (await azure.audio.transcriptions.create({ model: "whisper", file: file() })).text);

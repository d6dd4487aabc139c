// The AI SDK of Vercel with its provider for OpenAI.
import fs from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { experimental_transcribe as transcribe } from "ai";

const { SERVER_URL, SERVER_KEY, AUDIO_FILE } = process.env;
const openai = createOpenAI({ baseURL: `${SERVER_URL}/v1`, apiKey: SERVER_KEY });
const audio = fs.readFileSync(AUDIO_FILE);
const told = (call, text) => console.log(JSON.stringify({ call, text }));

told("whisper-1", (await transcribe({ model: openai.transcription("whisper-1"), audio })).text);
const words = await transcribe({
  model: openai.transcription("whisper-1"),
  audio,
  providerOptions: { openai: { timestampGranularities: ["word"] } },
});
told("whisper-1 with words", words.segments.map((segment) => segment.text).join(" "));
const options = { openai: { language: "en", timestampGranularities: ["word"] } };
const small = await transcribe({
  model: openai.transcription("gpt-4o-mini-transcribe"),
  audio,
  providerOptions: options,
});
told("gpt-4o-mini-transcribe", small.text);

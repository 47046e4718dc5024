// LangChain for JavaScript as its documentation says: the loader OpenAIWhisperAudio of @langchain/community.
import { OpenAIWhisperAudio } from "@langchain/community/document_loaders/fs/openai_whisper_audio";

const [, , voice] = process.argv;
const load = async (fields) => (await new OpenAIWhisperAudio(voice, fields).load())[0].pageContent;

const transcripts = {
  environment: await load(),
  clientOptions: await load({ clientOptions: { baseURL: process.env.OPENAI_BASE_URL } }),
  language: await load({ transcriptionCreateParams: { language: "en" } }),
};
console.log(JSON.stringify(transcripts));

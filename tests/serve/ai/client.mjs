// The package `ai` against a server: its address and a model are the arguments; prints what came of it as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, isStepCount, Output, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "wasmetal", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const options = { model: provider(name), temperature: 0, maxRetries: 0 };
const place = z.object({ city: z.enum(["Paris", "Rome"]) });
const getWeather = tool({
  description: "The weather in a city",
  inputSchema: place,
  execute: async ({ city }) => `22 degrees in ${city}`,
});
const asking = {
  ...options,
  prompt: "What is the weather in Paris?",
  tools: { getWeather },
  toolChoice: "required",
  maxOutputTokens: 200,
  providerOptions: { wasmetal: { parallel_tool_calls: false } },
};

const said = await generateText({ ...options, prompt: "hello", maxOutputTokens: 8 });

let streamed = "";
const stream = streamText({ ...options, prompt: "hello", maxOutputTokens: 8 });
for await (const piece of stream.textStream) streamed += piece;
const usage = await stream.usage;

const called = await generateText({ ...asking, stopWhen: isStepCount(1) });

const twoSteps = await generateText({
  ...asking,
  stopWhen: isStepCount(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
});

const streamedCalls = [];
const toolStream = streamText({ ...asking, stopWhen: isStepCount(1) });
for await (const part of toolStream.fullStream) {
  if (part.type === "tool-call") streamedCalls.push({ name: part.toolName, input: part.input });
  if (part.type === "error") throw part.error;
}

const form = await generateText({ ...options, prompt: "A city.", maxOutputTokens: 200, output: Output.object({ schema: place }) });

console.log(
  JSON.stringify({
    said: said.text,
    streamed,
    usage: { input: usage.inputTokens, output: usage.outputTokens },
    calls: called.toolCalls.map((call) => ({ name: call.toolName, input: call.input })),
    reason: called.finishReason,
    results: called.toolResults.map((result) => result.output),
    steps: twoSteps.steps.length,
    streamedCalls,
    form: form.output,
  }),
);

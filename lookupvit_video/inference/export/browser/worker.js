// The model, in a thread of its own: {load: file, backend} or {run: clip, id} in; {loaded}, {id, probabilities}, {error} out.

const MODULES = { webgpu: "./ort.webgpu.min.mjs", wasm: "./ort.wasm.min.mjs" };
let ort, session, shape;

async function load({ load: file, backend, input }) {
  ort = await import(MODULES[backend]);
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  shape = input;
  session = await ort.InferenceSession.create(new URL(file, self.location.href).href, {
    executionProviders: [backend],
  });
  self.postMessage({ loaded: file, backend, threads });
}

async function run({ run: clip, id }) {
  const start = performance.now();
  const found = await session.run({ clips: new ort.Tensor("uint8", clip, shape) });
  const probabilities = Float32Array.from(await found.probabilities.getData());
  found.probabilities.dispose();
  self.postMessage({ id, probabilities, ms: performance.now() - start, clip }, [clip.buffer]);
}

self.onmessage = async ({ data }) => {
  try {
    await (data.load ? load(data) : run(data));
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error), id: data.id });
  }
};

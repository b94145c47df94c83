// Runs a GraphModel in the TensorFlow.js runtime and writes the tensors it was asked for.
//
//   node tfjs_reference.js WORKSPACE MODEL_DIR IMAGES HEIGHT WIDTH NODE...
//
// WORKSPACE holds node_modules; IMAGES is raw uint8 [count, HEIGHT, WIDTH, 3]. For image i and
// the j-th NODE, WORKSPACE/i.j.f32 receives the values (little-endian float32).
'use strict';

const fs = require('fs');
const path = require('path');
const { createRequire } = require('module');

// CommonJS builds: plain files that node reads as they are.
function load(workspace, name) {
  return createRequire(path.join(workspace, 'index.js'))(`@tensorflow/${name}`);
}

function ioHandler(directory) {
  return {
    load: async () => {
      const model = JSON.parse(fs.readFileSync(path.join(directory, 'model.json'), 'utf8'));
      const manifest = model.weightsManifest;
      const shards = manifest.flatMap((group) => group.paths)
        .map((name) => fs.readFileSync(path.join(directory, name)));
      const data = Uint8Array.from(Buffer.concat(shards));
      return {
        modelTopology: model.modelTopology,
        weightSpecs: manifest.flatMap((group) => group.weights),
        weightData: data.buffer,
      };
    },
  };
}

async function main() {
  const [workspace, directory, images, ...rest] = process.argv.slice(2);
  const [height, width] = rest.slice(0, 2).map(Number);
  const nodes = rest.slice(2);
  const tf = load(workspace, 'tfjs-core');
  load(workspace, 'tfjs-backend-cpu');
  const { loadGraphModel } = load(workspace, 'tfjs-converter');
  await tf.setBackend('cpu');
  const model = await loadGraphModel(ioHandler(directory));
  const pixels = fs.readFileSync(images);
  const size = height * width * 3;
  for (let i = 0; i * size < pixels.length; i++) {
    const image = pixels.subarray(i * size, (i + 1) * size);
    const input = tf.tensor4d(Int32Array.from(image), [1, height, width, 3], 'int32');
    // The graph has a loop (it resizes image by image), hence the asynchronous executor.
    const outputs = await model.executeAsync({ [model.inputs[0].name]: input }, nodes);
    [].concat(outputs).forEach((tensor, j) => {
      fs.writeFileSync(path.join(workspace, `${i}.${j}.f32`), Float32Array.from(tensor.dataSync()));
      tensor.dispose();
    });
    input.dispose();
  }
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});

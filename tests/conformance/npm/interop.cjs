// Sign or verify requests with npm's HTTP Message Signatures libraries, for tests/conformance/test_interop.py.
//
// argv[2]: the folder with node_modules. Standard input: a JSON list of
//   {library, do: "sign"|"verify", alg, keyid, jwk, request: {method, url, headers: [[name, value]]},
//    components, created, expires, nonce, tag}
// Standard output: a JSON list of {headers: {"signature-input", "signature"}} or {verified: true|false, why}.
"use strict";

const { createRequire } = require("node:module");
const crypto = require("node:crypto");
const load = createRequire(`${process.argv[2]}/`);
const signatures = load("http-message-signatures");
const sig = load("http-message-sig");

const isEcdsa = (task) => task.alg === "ecdsa-p256-sha256";
const keyOf = (task) => {
  const key = task.do === "sign" ? crypto.createPrivateKey({ key: task.jwk, format: "jwk" })
                                 : crypto.createPublicKey({ key: task.jwk, format: "jwk" });
  return isEcdsa(task) ? { key, dsaEncoding: "ieee-p1363" } : key;
};
const hashOf = (task) => (isEcdsa(task) ? "sha256" : null);

function headersOf(request) {
  const headers = {};
  for (const [name, value] of request.headers) {
    headers[name] = name in headers ? [].concat(headers[name], value) : value;
  }
  return headers;
}

function lowerCased(headers) {
  const found = {};
  for (const [name, value] of Object.entries(headers)) found[name.toLowerCase()] = value;
  return { "signature-input": found["signature-input"], signature: found.signature };
}

const nodeLibrary = {
  async sign(task) {
    const message = { method: task.request.method, url: task.request.url, headers: headersOf(task.request) };
    const signed = await signatures.httpbis.signMessage({
      key: { id: task.keyid, alg: task.alg, sign: async (data) => crypto.sign(hashOf(task), data, keyOf(task)) },
      name: "theirs",
      fields: task.components,
      params: ["created", "expires", "keyid", "alg", "nonce", "tag"],
      paramValues: { created: new Date(task.created * 1000), expires: new Date(task.expires * 1000), nonce: task.nonce, tag: task.tag },
    }, message);
    return { headers: lowerCased(signed.headers) };
  },
  async verify(task) {
    const message = { method: task.request.method, url: task.request.url, headers: headersOf(task.request) };
    const verified = await signatures.httpbis.verifyMessage({
      keyLookup: async (params) => params.keyid !== task.keyid ? null : {
        id: task.keyid,
        algs: [task.alg],
        verify: async (data, signature) => crypto.verify(hashOf(task), data, keyOf(task), signature),
      },
      all: true,
      tolerance: 5,
      requiredParams: ["created", "expires", "keyid", "alg", "nonce", "tag"],
      requiredFields: task.components,
    }, message);
    return { verified: verified === true };
  },
};

const descriptorOf = (request) => ({
  kind: "request",
  method: request.method,
  targetUri: request.url,
  fields: request.headers.map(([name, value]) => ({ name, value })),
});

const cloudLibrary = {
  async sign(task) {
    const { created, expires, nonce, keyid, alg, tag } = task;
    const fields = await sig.createSignature(descriptorOf(task.request), {
      label: "theirs",
      components: task.components,
      parameters: { created, expires, keyid, alg, nonce, tag },
      signer: { algorithm: alg, sign: (data) => new Uint8Array(crypto.sign(hashOf(task), data, keyOf(task))) },
    });
    return { headers: { "signature-input": fields.signatureInput, signature: fields.signature } };
  },
  async verify(task) {
    await sig.verifySignature(descriptorOf(task.request), {
      label: "pch",
      policy: {
        algorithms: [task.alg],
        requiredComponents: task.components,
        requiredParameters: ["created", "expires", "keyid", "alg", "nonce", "tag"],
        maxAge: 60,
        clockSkew: 5,
      },
      resolveVerifier: () => ({
        algorithm: task.alg,
        verify: (data, signature) => crypto.verify(hashOf(task), data, keyOf(task), signature),
      }),
    });
    return { verified: true };
  },
};

const LIBRARIES = { "http-message-signatures": nodeLibrary, "http-message-sig": cloudLibrary };

async function main() {
  let text = "";
  for await (const chunk of process.stdin) text += chunk;
  const answers = [];
  for (const task of JSON.parse(text)) {
    try {
      answers.push(await LIBRARIES[task.library][task.do](task));
    } catch (error) {
      answers.push({ verified: false, why: String(error && error.message) });
    }
  }
  process.stdout.write(JSON.stringify(answers));
}

main();

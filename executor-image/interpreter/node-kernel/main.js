// A Jupyter kernel for JavaScript and TypeScript on Node.js (code-interpreter 6).
//
// This thread runs the user's code and nothing else. A second one (protocol.js) talks to the interpreter. Code is
// evaluated by the inspector, which knows what a console needs: top-level await, declarations that may be repeated, and,
// asked by the other thread, an end to code that does not end by itself.
'use strict';

const inspector = require('node:inspector');
const { Worker } = require('node:worker_threads');
const path = require('node:path');
const { createRequire } = require('node:module');
const { pathToFileURL } = require('node:url');
const util = require('node:util');
const vm = require('node:vm');

const [, , language, connectionFile] = process.argv;
process.argv = process.argv.slice(0, 1);

const protocol = new Worker(path.join(__dirname, 'protocol.js'), {
    workerData: { language, connectionFile },
    // What is printed goes to the client, not to this process's own output.
    stdout: false,
    env: { ...process.env },
});
protocol.on('error', (error) => {
    process._rawDebug(`sandyard-node-kernel: ${error.stack}`);
    process.exit(1);
});
protocol.on('exit', (code) => process.exit(code));

for (const name of ['stdout', 'stderr']) {
    const decoder = new util.TextDecoder();
    process[name].write = (chunk, encoding, callback) => {
        let text = chunk;
        if (typeof chunk === 'string') {
            if (typeof encoding === 'string' && !/^utf-?8$/i.test(encoding)) {
                text = decoder.decode(Buffer.from(chunk, encoding), { stream: true });
            }
        } else {
            text = decoder.decode(chunk, { stream: true });
        }
        if (text) protocol.postMessage({ type: 'stream', name, text });
        const done = typeof encoding === 'function' ? encoding : callback;
        if (done) process.nextTick(done);
        return true;
    };
}

// Code that runs when no cell does: its errors are told, and the state stays.
process.on('uncaughtException', (error) => process.stderr.write(`Uncaught ${util.inspect(error)}\n`));
process.on('unhandledRejection', (error) =>
    process.stderr.write(`Uncaught (in promise) ${util.inspect(error)}\n`));

// ---- what cells find in their scope -----------------------------------------------------------------------------

function define(name, descriptor) {
    Object.defineProperty(globalThis, name, { configurable: true, enumerable: false, ...descriptor });
}

function place() {
    return path.join(process.cwd(), '[cell].mjs');
}

// A variable of the user's own takes the name over.
function lazily(name, make) {
    define(name, {
        get: make,
        set(value) {
            define(name, { value, writable: true });
        },
    });
}
lazily('require', () => createRequire(place()));
lazily('__dirname', () => process.cwd());
lazily('__filename', place);
define('module', { value: { exports: {} }, writable: true });
define('exports', { value: module.exports, writable: true });

const importers = new Map();
function importFrom(specifier, options) {
    const filename = place();
    if (!importers.has(filename)) {
        importers.set(filename, vm.runInThisContext('(specifier, options) => import(specifier, options)', {
            filename,
            importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
        }));
    }
    return importers.get(filename)(specifier, options);
}

function importMeta() {
    const filename = place();
    return {
        url: pathToFileURL(filename).href,
        filename,
        dirname: process.cwd(),
        resolve: (specifier) => pathToFileURL(createRequire(filename).resolve(specifier)).href,
    };
}

// ---- values -----------------------------------------------------------------------------------------------------

const BASE64_TYPES = /^(image\/(png|jpeg)|application\/pdf)$/;

function mimeValue(type, value) {
    if (BASE64_TYPES.test(type) && value instanceof Uint8Array) return Buffer.from(value).toString('base64');
    return value;
}

// The conventions of ijavascript (`_toHtml` and its kin) and of Deno (`Symbol.for("Jupyter.display")`).
const METHODS = {
    _toHtml: 'text/html', _toSvg: 'image/svg+xml', _toPng: 'image/png', _toJpeg: 'image/jpeg',
    _toMarkdown: 'text/markdown', _toLatex: 'text/latex',
};

async function bundleOf(value) {
    const data = { 'text/plain': util.inspect(value) };
    if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return data;
    const display = value[Symbol.for('Jupyter.display')];
    if (typeof display === 'function') Object.assign(data, await display.call(value));
    if (typeof value._toMime === 'function') Object.assign(data, await value._toMime());
    for (const [method, type] of Object.entries(METHODS)) {
        if (typeof value[method] === 'function') data[type] = await value[method]();
    }
    for (const type of Object.keys(data)) data[type] = mimeValue(type, data[type]);
    return data;
}

// What cannot be sent (functions, symbols) goes as its text.
function sendable(data) {
    try {
        return JSON.parse(JSON.stringify(data, (_, value) => typeof value === 'bigint' ? String(value) : value));
    } catch (error) {
        return { 'text/plain': data['text/plain'] ?? String(error) };
    }
}

async function display(value) {
    protocol.postMessage({ type: 'display', data: sendable(await bundleOf(value)) });
}

function displayMime(data) {
    const plain = Object.entries(data).map(([type, value]) => [type, mimeValue(type, value)]);
    protocol.postMessage({ type: 'display', data: sendable(Object.fromEntries(plain)) });
}
define('display', { value: display, writable: true });
define('$$', {
    writable: true,
    value: Object.freeze({
        display,
        mime: displayMime,
        text: (value) => displayMime({ 'text/plain': String(value) }),
        html: (value) => displayMime({ 'text/html': String(value) }),
        markdown: (value) => displayMime({ 'text/markdown': String(value) }),
        latex: (value) => displayMime({ 'text/latex': String(value) }),
        svg: (value) => displayMime({ 'image/svg+xml': String(value) }),
        json: (value) => displayMime({ 'application/json': value }),
        png: (value) => displayMime({ 'image/png': value }),
        jpeg: (value) => displayMime({ 'image/jpeg': value }),
    }),
});

// ---- cells ------------------------------------------------------------------------------------------------------

function nameOf(error) {
    return typeof error.name === 'string' && error.name ? error.name : 'Error';
}

function describe(error) {
    if (util.types.isNativeError(error) || error instanceof Error) {
        const lines = String(error.stack ?? error).split('\n');
        // From here on it is the inspector and this program.
        const isOurs = (line) => line.startsWith('    at ') && (line.includes(__dirname) || line.includes('node:'));
        const end = lines.findIndex(isOurs);
        const stack = (end < 0 ? lines : lines.slice(0, end)).join('\n');
        return { name: nameOf(error), value: String(error.message), traceback: stack };
    }
    const text = util.inspect(error);
    return { name: 'Error', value: typeof error === 'string' ? error : text, traceback: text };
}

function fail(id, error) {
    let described;
    try {
        described = describe(error);
    } catch {
        described = { name: 'Error', value: 'an error that cannot be shown', traceback: '' };
    }
    protocol.postMessage({ type: 'failed', id, ...described });
}

define('__sandyard', {
    value: Object.freeze({
        import: importFrom,
        meta: importMeta,
        fail,
        // Tells a cell's value, or what became of it if it is a promise.
        async show(id, value) {
            try {
                const settled = await value;
                const data = settled === undefined ? null : sendable(await bundleOf(settled));
                protocol.postMessage({ type: 'shown', id, data });
            } catch (error) {
                fail(id, error);
            }
        },
    }),
});

const session = new inspector.Session();
session.connect();
let globalObject;
session.post('Runtime.evaluate', { expression: 'globalThis' }, (_, { result }) => {
    globalObject = result.objectId;
});

function call(name, id, { objectId, unserializableValue, value }) {
    const argument = objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value };
    session.post('Runtime.callFunctionOn', {
        objectId: globalObject,
        functionDeclaration: `function (id, value) { __sandyard.${name}(id, value); }`,
        arguments: [{ value: id }, argument],
    });
    session.post('Runtime.releaseObjectGroup', { objectGroup: id });
}

function evaluate(id, expression) {
    const parameters = { expression, replMode: true, awaitPromise: true, objectGroup: id };
    session.post('Runtime.evaluate', parameters, (error, evaluated) => {
        if (error) protocol.postMessage({ type: 'terminated', id });
        else if (!evaluated.exceptionDetails) call('show', id, evaluated.result);
        else call('fail', id, evaluated.exceptionDetails.exception ?? { value: evaluated.exceptionDetails.text });
    });
}

protocol.on('message', (message) => {
    switch (message.type) {
        case 'evaluate':
            evaluate(message.id, message.expression);
            break;
        case 'ping':
            protocol.postMessage({ type: 'pong' });
            break;
    }
});

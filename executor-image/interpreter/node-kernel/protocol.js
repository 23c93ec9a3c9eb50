// The thread that talks to the interpreter: the Jupyter protocol 5.3 on one side, the main thread on the other.
'use strict';

const { parentPort, workerData, receiveMessageOnPort } = require('node:worker_threads');
const { createHmac, randomUUID } = require('node:crypto');
const fs = require('node:fs');
const inspector = require('node:inspector');
const zmq = require('zeromq');

const { toScript } = require('./cell.js');

const { language, connectionFile } = workerData;
const connection = JSON.parse(fs.readFileSync(connectionFile, 'utf8'));
const session = new inspector.Session();
session.connectToMainThread();

// A main thread that answers within it waits for something and runs nothing, in milliseconds.
const ANSWER_LIMIT = 100;
// More messages at once than this are put together.
const MERGE_ABOVE = 32;

const shell = new zmq.Router();
const control = new zmq.Router();
const stdin = new zmq.Router();
const iopub = new zmq.Publisher({ sendHighWaterMark: 0 });
const heartbeat = new zmq.Reply();

function address(channel) {
    const { transport, ip } = connection;
    return `${transport}://${ip}${transport === 'tcp' ? ':' : '-'}${connection[`${channel}_port`]}`;
}

// ---- messages ---------------------------------------------------------------------------------------------------

const ownSession = randomUUID();

function sign(parts) {
    // Without a key messages are not signed.
    if (!connection.key) return '';
    const hmac = createHmac('sha256', connection.key);
    for (const part of parts) hmac.update(part);
    return hmac.digest('hex');
}

function frames(type, parentHeader, content) {
    const header = {
        msg_id: randomUUID(), session: ownSession, username: 'kernel', date: new Date().toISOString(),
        msg_type: type, version: '5.3',
    };
    const parts = [header, parentHeader, {}, content].map((part) => JSON.stringify(part));
    return ['<IDS|MSG>', sign(parts), ...parts];
}

// A socket takes one message at a time; these go out in their order.
function sender(socket) {
    let last = Promise.resolve();
    return (message) => {
        last = last.then(() => socket.send(message));
        return last;
    };
}
const sendIopub = sender(iopub);
const sendShell = sender(shell);
const sendControl = sender(control);

// The request that output belongs to: the present one, else the last one.
let parent = {};

function publish(type, content, to = parent) {
    return sendIopub([type, ...frames(type, to, content)]);
}

function read(message) {
    const at = message.findIndex((part) => part.toString() === '<IDS|MSG>');
    if (at < 0) return null;
    const [signature, header, parentHeader, metadata, content] = message.slice(at + 1);
    const parts = [header, parentHeader, metadata, content];
    if (connection.key && sign(parts) !== signature.toString()) return null;
    return { identities: message.slice(0, at), header: JSON.parse(header), content: JSON.parse(content) };
}

// ---- cells ------------------------------------------------------------------------------------------------------

let count = 0;
// The cell that runs, with what ends it.
let running = null;
// Called when the main thread answers.
let pinged = () => {};

// Resolves to { data } or { error: { name, value, traceback } }.
function runCell(code) {
    const id = randomUUID();
    return new Promise((resolve) => {
        running = { id, resolve };
        start(id, code);
    });
}

function finish(id, outcome) {
    if (running?.id !== id) return;
    const { resolve } = running;
    running = null;
    resolve(outcome);
}

function start(id, code) {
    let expression;
    try {
        expression = toScript(code, language);
    } catch (error) {
        const value = String(error.message);
        finish(id, { error: { name: 'SyntaxError', value, traceback: `SyntaxError: ${value}` } });
        return;
    }
    if (!expression.trim()) {
        finish(id, { data: null });
        return;
    }
    parentPort.postMessage({ type: 'evaluate', id, expression });
}

function interruptedError() {
    return { name: 'KeyboardInterrupt', value: 'the execution was interrupted', traceback: 'KeyboardInterrupt' };
}

// Code that runs is ended. Code that waits cannot be ended, but nobody waits for it any more.
async function interrupt() {
    if (!running) return;
    const { id } = running;
    const answered = await Promise.race([
        new Promise((resolve) => {
            pinged = () => resolve(true);
            parentPort.postMessage({ type: 'ping' });
        }),
        new Promise((resolve) => setTimeout(resolve, ANSWER_LIMIT, false)),
    ]);
    if (!answered && running?.id === id) {
        await new Promise((resolve) => session.post('Runtime.terminateExecution', resolve));
    }
    finish(id, { error: interruptedError() });
}

// What the main thread says.
function take(message) {
    switch (message.type) {
        case 'stream':
            if (!silent) publish('stream', { name: message.name, text: message.text });
            break;
        case 'display':
            if (!silent) publish('display_data', { data: message.data, metadata: {}, transient: {} });
            break;
        case 'pong':
            pinged();
            break;
        case 'terminated':
            finish(message.id, { error: interruptedError() });
            break;
        case 'shown':
            finish(message.id, { data: message.data });
            break;
        case 'failed': {
            const { name, value, traceback } = message;
            finish(message.id, { error: { name, value, traceback } });
            break;
        }
    }
}

parentPort.on('message', (first) => {
    const messages = [first];
    for (let next = receiveMessageOnPort(parentPort); next; next = receiveMessageOnPort(parentPort)) {
        messages.push(next.message);
    }
    if (messages.length <= MERGE_ABOVE) {
        messages.forEach(take);
        return;
    }
    let text = null;
    for (const message of messages) {
        if (message.type === 'stream' && text?.name === message.name) {
            text.text += message.text;
            continue;
        }
        if (text) take(text);
        text = message.type === 'stream' ? message : null;
        if (!text) take(message);
    }
    if (text) take(text);
});

// Whether the present cell is not to be seen.
let silent = false;

async function execute({ identities, header, content }) {
    const { code } = content;
    silent = Boolean(content.silent);
    if (!silent) {
        count += 1;
        parent = header;
        await publish('execute_input', { code, execution_count: count });
    }
    const outcome = await runCell(code);
    let reply = { status: 'ok', execution_count: count, user_expressions: {}, payload: [] };
    if (outcome.error) {
        const { name: ename, value: evalue, traceback } = outcome.error;
        const error = { ename, evalue, traceback: [traceback] };
        if (!silent) await publish('error', error);
        reply = { status: 'error', execution_count: count, ...error };
    } else if (outcome.data && !silent) {
        await publish('execute_result', { execution_count: count, data: outcome.data, metadata: {}, transient: {} });
    }
    await sendShell([...identities, ...frames('execute_reply', header, reply)]);
    silent = false;
}

// ---- the other requests -----------------------------------------------------------------------------------------

const INFO = {
    status: 'ok',
    protocol_version: '5.3',
    implementation: 'sandyard-node-kernel',
    implementation_version: '1',
    language_info: {
        name: language,
        version: process.versions.node,
        mimetype: language === 'typescript' ? 'text/typescript' : 'text/javascript',
        file_extension: language === 'typescript' ? '.ts' : '.js',
    },
    banner: `Node.js ${process.version}`,
    help_links: [],
};

const ANSWERS = {
    kernel_info_request: () => ['kernel_info_reply', INFO],
    is_complete_request: () => ['is_complete_reply', { status: 'unknown' }],
    complete_request: ({ content }) => ['complete_reply', {
        status: 'ok', matches: [], cursor_start: content.cursor_pos, cursor_end: content.cursor_pos, metadata: {},
    }],
    inspect_request: () => ['inspect_reply', { status: 'ok', found: false, data: {}, metadata: {} }],
    history_request: () => ['history_reply', { status: 'ok', history: [] }],
    comm_info_request: () => ['comm_info_reply', { status: 'ok', comms: {} }],
    interrupt_request: async () => {
        await interrupt();
        return ['interrupt_reply', { status: 'ok' }];
    },
    shutdown_request: ({ content }) => ['shutdown_reply', { status: 'ok', restart: Boolean(content.restart) }],
};

async function serve(socket, send) {
    for await (const frame of socket) {
        const message = read(frame);
        if (!message) continue;
        const { header, identities } = message;
        await publish('status', { execution_state: 'busy' }, header);
        if (header.msg_type === 'execute_request' && socket === shell) {
            await execute(message);
        } else if (ANSWERS[header.msg_type]) {
            const [type, content] = await ANSWERS[header.msg_type](message);
            await send([...identities, ...frames(type, header, content)]);
        }
        await publish('status', { execution_state: 'idle' }, header);
        if (header.msg_type === 'shutdown_request') process.exit(0);
    }
}

async function main() {
    await iopub.bind(address('iopub'));
    await stdin.bind(address('stdin'));
    await heartbeat.bind(address('hb'));
    await control.bind(address('control'));
    await shell.bind(address('shell'));
    const beat = async () => {
        for await (const message of heartbeat) await heartbeat.send(message);
    };
    await Promise.all([serve(shell, sendShell), serve(control, sendControl), beat()]);
}

main();

// What a user does with the SDK, for any release of its 2.x line; the same calls as calls.py. The result is a line of JSON:
// how many were tried, and what failed with what.
//
//   calls.mjs PACKAGE TEMPLATE [pause]

import assert from 'node:assert/strict'

const [, , name, template, ...options] = process.argv
const { Sandbox, CommandExitError, NotFoundError } = await import(name)

const failed = {}
let tried = 0

async function call(what, work) {
  tried += 1
  try {
    return await work()
  } catch (error) {
    failed[what] = String(error).slice(0, 300)
    // Nothing can be done with the result of a call that failed: those that try fail too.
    return {}
  }
}

async function until(condition) {
  const end = Date.now() + 20_000
  while (!(await condition())) {
    assert.ok(Date.now() < end, 'not within 20 s')
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

async function streaming(box) {
  const heard = []
  const hear = (data) => heard.push(data)
  await box.commands.run('echo out; echo err >&2', { onStdout: hear, onStderr: hear })
  assert.deepEqual(heard.sort(), ['err\n', 'out\n'])
}

async function input(box) {
  const handle = await box.commands.run('read line; echo got $line', { background: true, stdin: true })
  await box.commands.sendStdin(handle.pid, 'it\n')
  assert.equal((await handle.wait()).stdout, 'got it\n')
}

async function joined(box) {
  const started = await box.commands.run('sleep 100', { background: true })
  // Its end is looked at by the other object.
  started.wait().catch(() => undefined)
  assert.ok((await box.commands.list()).some((process) => process.pid === started.pid))
  const again = await box.commands.connect(started.pid)
  const ended = assert.rejects(again.wait(), CommandExitError)
  assert.equal(await box.commands.kill(started.pid), true)
  await ended
}

async function watched(box, folder) {
  await box.files.makeDir(folder)
  const names = new Set()
  const watch = await box.files.watchDir(folder, (event) => names.add(event.name))
  await box.files.write(`${folder}/new`, '1')
  await until(() => names.has('new'))
  await watch.stop()
}

async function terminal(box) {
  let seen = ''
  const decoder = new TextDecoder()
  const onData = (data) => {
    seen += decoder.decode(data, { stream: true })
  }
  const shell = await box.pty.create({ rows: 24, cols: 80, onData, timeoutMs: 0 })
  await box.pty.resize(shell.pid, { rows: 30, cols: 101 })
  await box.pty.sendInput(shell.pid, new TextEncoder().encode('echo [$((6 * 7))-$(tput cols)]\n'))
  await until(() => seen.includes('[42-101]'))
  assert.equal(await box.pty.kill(shell.pid), true)
}

async function stream(box, path) {
  let bytes = 0
  for await (const piece of await box.files.read(path, { format: 'stream' })) bytes += piece.length
  assert.equal(bytes, 4)
}

/** Everything inside a sandbox, by one object for it. */
async function use(who, box) {
  const folder = `of-${who}`
  const bytes = new Uint8Array(256).map((_, index) => index)
  const calls = {
    run: async () => assert.equal((await box.commands.run('id -un; pwd')).stdout, 'user\n/home/user\n'),
    'run as root': async () => {
      const result = await box.commands.run('id -un; echo $A', { user: 'root', envs: { A: '1' }, cwd: '/' })
      assert.equal(result.stdout, 'root\n1\n')
    },
    'a command fails': () => assert.rejects(box.commands.run('exit 7'), (error) =>
      error instanceof CommandExitError && error.exitCode === 7),
    'output arrives': () => streaming(box),
    sendStdin: () => input(box),
    'list, connect, kill': () => joined(box),
    write: () => box.files.write(`${folder}/a`, 'text'),
    'write bytes': () => box.files.write(`${folder}/b`, bytes.buffer),
    'write many': () => box.files.write([0, 1, 2].map((n) => ({ path: `${folder}/${n}`, data: String(n) }))),
    read: async () => assert.equal(await box.files.read(`${folder}/a`), 'text'),
    'read bytes': async () =>
      assert.deepEqual(Buffer.from(await box.files.read(`${folder}/b`, { format: 'bytes' })), Buffer.from(bytes)),
    'read a stream': () => stream(box, `${folder}/a`),
    'files.list': async () =>
      assert.deepEqual((await box.files.list(folder)).map((entry) => entry.name).sort(), ['0', '1', '2', 'a', 'b']),
    'files.getInfo': async () => assert.equal((await box.files.getInfo(`${folder}/a`)).size, 4),
    makeDir: async () =>
      assert.deepEqual([await box.files.makeDir(`${folder}/d`), await box.files.makeDir(`${folder}/d`)], [true, false]),
    rename: async () => assert.equal((await box.files.rename(`${folder}/a`, `${folder}/c`)).name, 'c'),
    exists: async () =>
      assert.deepEqual([await box.files.exists(`${folder}/c`), await box.files.exists(`${folder}/a`)], [true, false]),
    remove: () => box.files.remove(`${folder}/c`),
    'read what is not there': () => assert.rejects(box.files.read(`${folder}/c`), NotFoundError),
    watchDir: () => watched(box, `${folder}/watched`),
    pty: () => terminal(box),
    isRunning: async () => assert.equal(await box.isRunning(), true),
  }
  for (const [what, work] of Object.entries(calls)) await call(`${who}: ${what}`, work)
}

async function signed(box) {
  await box.files.write('signed.txt', 'signed')
  assert.equal(await (await fetch(await box.downloadUrl('signed.txt'))).text(), 'signed')
}

const created = { timeoutMs: 300_000, metadata: { sdk: 'any' }, envs: { FROM_CREATE: '1' } }
const box = await call('create', () => Sandbox.create(template, created))
const id = box.sandboxId ?? 'inone'
await use('created', box)
await call('getInfo', async () => assert.equal((await box.getInfo()).sandboxId, id))
await call('list', async () =>
  assert.ok((await Sandbox.list().nextItems()).some((item) => item.sandboxId === id)))
await call('setTimeout', () => box.setTimeout(600_000))
await call('getHost', async () => assert.ok(box.getHost(8000).startsWith(`8000-${id}.`)))
await call('downloadUrl', () => signed(box))
await use('static connect', await call('Sandbox.connect', () => Sandbox.connect(id, { timeoutMs: 300_000 })))
await use('instance connect', await call('connect', () => box.connect({ timeoutMs: 300_000 })))
await call('envs of the create', async () =>
  assert.equal((await box.commands.run('echo $FROM_CREATE')).stdout, '1\n'))
if (options.includes('pause')) {
  // Its first name.
  await call('pause', () => (box.pause ? box.pause() : box.betaPause()))
  const resumed = await call('Sandbox.connect, paused', () => Sandbox.connect(id, { timeoutMs: 300_000 }))
  await call('run, resumed', async () =>
    assert.equal((await resumed.commands.run('ls of-created/b')).stdout, 'of-created/b\n'))
}
await call('kill', () => box.kill())
await call('kill what is gone', async () => assert.equal(await Sandbox.kill(id), false))
await call('connect to what is not there', () => assert.rejects(Sandbox.connect(id), NotFoundError))
console.log(JSON.stringify({ tried, failed }))
process.exit(0)

// Pause, resume, snapshots and forks by the official JavaScript SDK, unmodified.

import assert from 'node:assert/strict'
import { request } from 'node:http'
import { test } from 'node:test'
import { text } from 'node:stream/consumers'

import { NotFoundError, Sandbox, SandboxError, SandboxNotFoundError } from 'e2b'

// When the first process began: another value after each start.
const STARTED = "cut -d' ' -f22 /proc/1/stat"

// State in memory: how often it was asked, and which process it is.
const COUNTER = `
let count = 0
require('node:http').createServer((_, answer) => answer.end(++count + ' ' + process.pid))
  .listen(3000, '127.0.0.1', () => console.log('listening'))`

async function withSandbox(options, body) {
  const sandbox = await Sandbox.create('base', options)
  try {
    await body(sandbox)
  } finally {
    await sandbox.kill()
  }
}

/** Starts the counter; resolves when it listens. */
async function serveCounter(sandbox) {
  await sandbox.files.write('counter.js', COUNTER)
  let listens
  const listening = new Promise((resolve) => {
    listens = resolve
  })
  const command = 'exec node counter.js'
  const handle = await sandbox.commands.run(command, { background: true, timeoutMs: 0, onStdout: listens })
  await listening
  await handle.disconnect()
  return handle.pid
}

function ask(sandbox) {
  return new Promise((resolve, reject) => {
    const headers = { Host: sandbox.getHost(3000) }
    request(process.env.E2B_SANDBOX_URL, { headers }, (response) => {
      text(response).then((body) => resolve({ status: response.statusCode, body }), reject)
    }).on('error', reject).end()
  })
}

async function until(what, condition, limit = 20_000) {
  const end = Date.now() + limit
  while (!(await condition())) {
    assert.ok(Date.now() < end, `after ${limit} ms still not: ${what}`)
  }
}

test('a pause with memory keeps programs, their ports and their identity', async () => {
  await withSandbox({ envs: { FROM_CREATE: '1' }, metadata: { a: 'b' } }, async (sandbox) => {
    const pid = await serveCounter(sandbox)
    assert.deepEqual(await ask(sandbox), { status: 200, body: `1 ${pid}` })
    assert.equal(await sandbox.pause(), true)
    assert.equal(await sandbox.pause(), false)
    assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).state, 'paused')
    assert.equal(await sandbox.isRunning(), false)
    const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 120_000 })
    assert.deepEqual(await ask(again), { status: 200, body: `2 ${pid}` })
    assert.ok((await again.commands.list()).some((process) => process.pid === pid))
    // The object from before the pause is as good as the new one.
    assert.equal((await sandbox.commands.run('echo $FROM_CREATE')).stdout, '1\n')
    const info = await sandbox.getInfo()
    assert.equal(Math.round((info.endAt - info.startedAt) / 1000), 120)
    assert.deepEqual(info.metadata, { a: 'b' })
  })
})

test('a stream that is held over a pause goes on', async () => {
  await withSandbox({}, async (sandbox) => {
    let heard = ''
    const handle = await sandbox.commands.run('while read line; do echo got $line; done; exit 7', {
      background: true,
      stdin: true,
      timeoutMs: 0,
      onStdout: (data) => {
        heard += data
      },
    })
    const ended = handle.wait().catch((error) => error)
    await sandbox.commands.sendStdin(handle.pid, 'before\n')
    await sandbox.pause()
    await sandbox.connect()
    await sandbox.commands.sendStdin(handle.pid, 'after\n')
    await sandbox.commands.closeStdin(handle.pid)
    assert.equal((await ended).exitCode, 7)
    assert.equal(heard, 'got before\ngot after\n')
  })
})

test('a pause of the file system keeps files and no processes', async () => {
  await withSandbox({ envs: { FROM_CREATE: '1' } }, async (sandbox) => {
    await sandbox.files.write('kept.txt', 'kept')
    await serveCounter(sandbox)
    const started = (await sandbox.commands.run(STARTED)).stdout
    assert.equal(await sandbox.pause({ keepMemory: false }), true)
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.deepEqual(await again.commands.list(), [])
    assert.equal(await again.files.read('kept.txt'), 'kept')
    const shown = await again.commands.run(`id -un; pwd; echo $FROM_CREATE; ${STARTED}`)
    assert.equal(shown.stdout.split('\n').slice(0, 3).join(' '), 'user /home/user 1')
    assert.notEqual(shown.stdout.split('\n')[3], started.trim())
  })
})

test('a timeout pauses, and a command or a request wakes', async () => {
  const lifecycle = { onTimeout: 'pause', autoResume: true }
  await withSandbox({ lifecycle, timeoutMs: 420_000 }, async (sandbox) => {
    const pid = await serveCounter(sandbox)
    await sandbox.setTimeout(0)
    await until('it is paused', async () => (await sandbox.getInfo()).state === 'paused', 10_000)
    assert.equal((await sandbox.commands.run('echo awake')).stdout, 'awake\n')
    const info = await sandbox.getInfo()
    assert.equal(info.state, 'running')
    // The creation's timeout (control-plane 3.4).
    assert.equal(Math.round((info.endAt - info.startedAt) / 1000), 420)
    assert.deepEqual(info.lifecycle, lifecycle)
    await sandbox.pause()
    assert.deepEqual(await ask(sandbox), { status: 200, body: `1 ${pid}` })
  })
})

test('without auto-resume a request finds nothing', async () => {
  await withSandbox({ lifecycle: { onTimeout: 'pause' } }, async (sandbox) => {
    await serveCounter(sandbox)
    await sandbox.pause()
    const answer = await ask(sandbox)
    assert.equal(answer.status, 502)
    assert.deepEqual(JSON.parse(answer.body), {
      message: 'The sandbox was not found',
      sandboxId: sandbox.sandboxId,
      code: 502,
    })
    await assert.rejects(sandbox.commands.run('true'))
    assert.equal((await sandbox.getInfo()).state, 'paused')
  })
})

test('a paused sandbox is listed, killed and then unknown', async () => {
  const mark = `js-${Date.now()}`
  const sandbox = await Sandbox.create('base', { metadata: { mark } })
  await sandbox.pause()
  const list = (state) => Sandbox.list({ query: { metadata: { mark }, state } }).nextItems()
  assert.deepEqual((await list(['paused'])).map((s) => [s.sandboxId, s.state]), [[sandbox.sandboxId, 'paused']])
  assert.deepEqual(await list(['running']), [])
  assert.equal(await Sandbox.kill(sandbox.sandboxId), true)
  assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
  assert.deepEqual(await list(['running', 'paused']), [])
  for (const call of [Sandbox.pause, Sandbox.connect, Sandbox.getInfo]) {
    await assert.rejects(call.call(Sandbox, sandbox.sandboxId), SandboxNotFoundError)
  }
})

test('snapshots are taken, named, listed, started from and deleted', async () => {
  const name = `js-${Date.now()}`
  await withSandbox({}, async (sandbox) => {
    await sandbox.files.write('version', '1')
    const unnamed = await sandbox.createSnapshot()
    await sandbox.files.write('version', '2')
    const named = await Sandbox.createSnapshot(sandbox.sandboxId, { name })
    assert.ok(named.snapshotId.endsWith(`/${name}:default`), named.snapshotId)
    const pages = sandbox.listSnapshots({ limit: 1 })
    const shown = []
    while (pages.hasNext) shown.push(...(await pages.nextItems()))
    assert.deepEqual(shown.map((s) => s.snapshotId), [named.snapshotId, unnamed.snapshotId])
    for (const [snapshot, version] of [[unnamed, '1'], [named, '2']]) {
      const copy = await Sandbox.create(snapshot.snapshotId)
      assert.equal(await copy.files.read('version'), version)
      await copy.kill()
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
      assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
      await assert.rejects(Sandbox.create(snapshot.snapshotId), /404/)
    }
  })
})

test('a fork of a sandbox that serves HTTP', async () => {
  await withSandbox({ metadata: { a: 'b' } }, async (sandbox) => {
    await sandbox.files.write('kept.txt', 'kept')
    const pid = await serveCounter(sandbox)
    const copies = await sandbox.fork({ count: 2, timeoutMs: 120_000 })
    assert.equal(copies.length, 2)
    assert.deepEqual(await ask(sandbox), { status: 200, body: `1 ${pid}` })
    for (const copy of copies) {
      assert.ok(copy instanceof Sandbox, String(copy))
      assert.notEqual(copy.sandboxId, sandbox.sandboxId)
      assert.equal(await copy.files.read('kept.txt'), 'kept')
      assert.deepEqual((await copy.getInfo()).metadata, { a: 'b' })
      const own = await serveCounter(copy)
      assert.deepEqual(await ask(copy), { status: 200, body: `1 ${own}` })
      assert.equal(await copy.kill(), true)
    }
    await sandbox.pause()
    await assert.rejects(sandbox.fork(), (error) => error instanceof SandboxError && /409/.test(error.message))
  })
})

test('a workspace is in the store when a pause has answered, and back after it', async () => {
  const session = `js-${Date.now()}`
  await withSandbox({ metadata: { session } }, async (sandbox) => {
    for (const keepMemory of [true, false]) {
      await sandbox.files.write('/workspace/artifacts/a', String(keepMemory))
      await sandbox.pause({ keepMemory })
      const other = await Sandbox.create('base', { metadata: { session } })
      assert.equal(await other.files.read('/workspace/artifacts/a'), String(keepMemory))
      await other.files.write('/workspace/uploads/b', `seen ${keepMemory}`)
      await other.kill()
      await sandbox.connect()
      assert.equal(await sandbox.files.read('/workspace/uploads/b'), `seen ${keepMemory}`)
    }
  })
})

test('what is not there is not found', async () => {
  await assert.rejects(Sandbox.pause('inope'), NotFoundError)
  await assert.rejects(Sandbox.fork('inope'), NotFoundError)
  await assert.rejects(Sandbox.createSnapshot('inope'), NotFoundError)
  assert.equal(await Sandbox.deleteSnapshot('nope'), false)
})

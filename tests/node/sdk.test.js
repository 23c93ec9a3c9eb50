// The official JavaScript SDK, unmodified, against a real server: what its users do first.
// scripts/test starts the server and sets E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import { CommandExitError, NotFoundError, Sandbox } from 'e2b'

describe('a sandbox', () => {
  let sandbox

  before(async () => {
    sandbox = await Sandbox.create('base', {
      envs: { FROM_CREATE: '1' },
      metadata: { session: 'node' },
      timeoutMs: 120_000,
    })
  })

  after(async () => {
    assert.equal(await sandbox.kill(), true)
    // The JS SDK decides "not found" by body.code (control-plane G1).
    assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
    assert.equal(await sandbox.isRunning(), false)
  })

  test('runs commands with environment, user and exit codes', async () => {
    const result = await sandbox.commands.run('id -un; pwd; echo $FROM_CREATE; echo err >&2')
    assert.equal(result.stdout, 'user\n/home/user\n1\n')
    assert.equal(result.stderr, 'err\n')
    await assert.rejects(sandbox.commands.run('exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError)
      assert.equal(error.exitCode, 3)
      return true
    })
  })

  test('streams output while a command runs, takes input, lists and kills', async () => {
    let seen = ''
    const handle = await sandbox.commands.run('cat', {
      background: true,
      stdin: true,
      onStdout: (data) => {
        seen += data
      },
    })
    assert.deepEqual((await sandbox.commands.list()).map((p) => p.pid), [handle.pid])
    await sandbox.commands.sendStdin(handle.pid, 'hello\n')
    await sandbox.commands.closeStdin(handle.pid)
    await handle.wait()
    assert.equal(seen, 'hello\n')
    const sleeper = await sandbox.commands.run('sleep 100', { background: true })
    assert.equal(await sleeper.kill(), true)
    assert.equal(await sandbox.commands.kill(999_999), false)
  })

  test('writes and reads files, in the workspace too', async () => {
    await sandbox.files.write('a/b.txt', 'text')
    assert.equal(await sandbox.files.read('a/b.txt'), 'text')
    const bytes = new Uint8Array(300_000).map((_, index) => index % 251)
    await sandbox.files.write('/workspace/artifacts/bytes', bytes.buffer)
    const back = await sandbox.files.read('/workspace/artifacts/bytes', { format: 'bytes' })
    assert.deepEqual(Buffer.from(back), Buffer.from(bytes))
    const names = (await sandbox.files.list('/workspace')).map((entry) => entry.name)
    assert.deepEqual(names, ['artifacts', 'uploads'])
    assert.equal(await sandbox.files.exists('nowhere'), false)
    await assert.rejects(sandbox.files.read('nowhere'), NotFoundError)
    await sandbox.files.write('empty', '')
    assert.equal(await sandbox.files.read('empty'), '')
  })

  test('is found, extended and connected to', async () => {
    const info = await sandbox.getInfo()
    assert.equal(info.name, 'base')
    assert.equal(info.endAt - info.startedAt, 120_000)
    const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 10_000 })
    assert.equal((await again.getInfo()).endAt.getTime(), info.endAt.getTime())
    await sandbox.setTimeout(600_000)
    assert.ok((await sandbox.getInfo()).endAt > info.endAt)
    const page = await Sandbox.list({ query: { metadata: { session: 'node' } } }).nextItems()
    assert.deepEqual(page.map((s) => s.sandboxId), [sandbox.sandboxId])
  })

  test('gives signed URLs that work alone', async () => {
    await sandbox.files.write('signed.txt', 'signed')
    const url = await sandbox.downloadUrl('signed.txt')
    assert.equal(await (await fetch(url)).text(), 'signed')
  })
})

test('an unknown sandbox is not found', async () => {
  await assert.rejects(Sandbox.connect('inope'), NotFoundError)
})

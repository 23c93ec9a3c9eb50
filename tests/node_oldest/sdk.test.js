// The oldest JavaScript SDK of the 2.x line that there is (control-plane 9). It knows neither E2B_API_URL nor
// E2B_SANDBOX_URL, but only a domain under which all is reached by TLS (control-plane 5.4, setup B):
// scripts/test starts a server and sets what `sandyard env --tls` prints.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'

import {
  CommandExitError,
  FilesystemEventType,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  TimeoutError,
} from 'e2b'

// Waits for a condition; the failure names it.
async function until(what, condition, limitMs = 20_000) {
  const end = Date.now() + limitMs
  while (!(await condition())) {
    assert.ok(Date.now() < end, `after ${limitMs} ms still not: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

test('this is the oldest release', () => {
  const file = new URL('node_modules/e2b/package.json', import.meta.url)
  assert.equal(JSON.parse(readFileSync(file)).version, '2.0.1')
  assert.ok(process.env.E2B_DOMAIN)
})

// After a call that failed, this release keeps the timer of its request, and the program runs until then.
const failing = { requestTimeoutMs: 5000 }

describe('a sandbox', () => {
  let sandbox

  before(async () => {
    sandbox = await Sandbox.create('base', {
      envs: { FROM_CREATE: '1' },
      metadata: { kind: 'oldest-js' },
      timeoutMs: 120_000,
    })
  })

  after(async () => {
    await sandbox.kill()
    assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
    assert.equal(await sandbox.isRunning(), false)
    // POST …/timeout, then …/resume: 404 is "not found" (control-plane 9).
    await assert.rejects(Sandbox.connect(sandbox.sandboxId), NotFoundError)
  })

  test('is found, extended and connected to', async () => {
    const info = await sandbox.getInfo()
    assert.equal(info.endAt - info.startedAt, 120_000)
    const page = await Sandbox.list({ query: { metadata: { kind: 'oldest-js' } } }).nextItems()
    assert.deepEqual(page.map((s) => s.sandboxId), [sandbox.sandboxId])
    const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: 600_000 })
    assert.equal((await again.commands.run('echo $E2B_SANDBOX_ID')).stdout.trim(), sandbox.sandboxId)
    assert.ok((await sandbox.getInfo()).endAt > info.endAt)
  })

  test('runs commands with environment, input and exit codes', async () => {
    const result = await sandbox.commands.run('id -un; pwd; echo $FROM_CREATE$OWN; echo err >&2', {
      envs: { OWN: '2' },
    })
    assert.equal(result.stdout, 'user\n/home/user\n12\n')
    assert.equal(result.stderr, 'err\n')
    await assert.rejects(sandbox.commands.run('exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError)
      assert.equal(error.exitCode, 3)
      return true
    })
    await assert.rejects(
      sandbox.commands.run('true', { cwd: '/nowhere', ...failing }),
      InvalidArgumentError,
    )
    // This release sends no `stdin`: a pipe, open until the end (executor 4.3).
    const handle = await sandbox.commands.run('read line; echo got $line', { background: true })
    assert.deepEqual((await sandbox.commands.list()).map((p) => p.pid), [handle.pid])
    await sandbox.commands.sendStdin(handle.pid, 'it\n')
    assert.equal((await handle.wait()).stdout, 'got it\n')
    const sleeper = await sandbox.commands.run('sleep 100', { background: true })
    const again = await sandbox.commands.connect(sleeper.pid)
    assert.equal(await sleeper.kill(), true)
    await assert.rejects(again.wait(), CommandExitError)
    await assert.rejects(sleeper.wait(), CommandExitError)
    assert.equal(await sandbox.commands.kill(999_999), false)
    await assert.rejects(sandbox.commands.connect(999_999, failing), NotFoundError)
    await assert.rejects(sandbox.commands.run('sleep 10', { timeoutMs: 1000 }), TimeoutError)
  })

  test('has terminals', async () => {
    let seen = ''
    const decoder = new TextDecoder()
    const shell = await sandbox.pty.create({
      cols: 80,
      rows: 24,
      onData: (data) => {
        seen += decoder.decode(data, { stream: true })
      },
    })
    await sandbox.pty.resize(shell.pid, { cols: 123, rows: 40 })
    await sandbox.pty.sendInput(shell.pid, new TextEncoder().encode('echo [$(tput cols)-$TERM]; exit\n'))
    assert.equal((await shell.wait()).exitCode, 0)
    assert.match(seen, /\[123-xterm-256color\]/)
    const other = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} })
    assert.equal(await sandbox.pty.kill(other.pid), true)
    await assert.rejects(other.wait(), CommandExitError)
    assert.equal(await sandbox.pty.kill(999_999), false)
  })

  test('has files', async () => {
    const { files } = sandbox
    assert.equal((await files.write('a/ü b.txt', 'text')).path, '/home/user/a/ü b.txt')
    assert.equal(await files.read('a/ü b.txt'), 'text')
    const bytes = new Uint8Array(300_000).map((_, index) => index % 251)
    await files.write('/tmp/bytes', bytes.buffer)
    const back = await files.read('/tmp/bytes', { format: 'bytes' })
    assert.deepEqual(Buffer.from(back), Buffer.from(bytes))
    await files.write([{ path: 'many/1', data: '1' }, { path: 'many/2', data: '2' }])
    assert.deepEqual((await files.list('many')).map((entry) => entry.name), ['1', '2'])
    const info = await files.getInfo('a/ü b.txt')
    assert.deepEqual([info.size, info.owner, info.permissions], [4, 'user', '-rw-r--r--'])
    assert.equal((await files.rename('a/ü b.txt', 'moved')).path, '/home/user/moved')
    assert.equal(await files.makeDir('new'), true)
    assert.equal(await files.makeDir('new'), false)
    await files.remove('moved')
    assert.equal(await files.exists('moved'), false)
    await assert.rejects(files.read('moved'), NotFoundError)
    await files.write('signed.txt', 'signed')
    const url = await sandbox.downloadUrl('signed.txt')
    assert.equal(await (await fetch(url)).text(), 'signed')
  })

  test('tells what happens in a watched directory', async () => {
    await sandbox.files.makeDir('watched')
    const events = []
    const handle = await sandbox.files.watchDir('watched', (event) => events.push(event), {
      recursive: true,
    })
    await sandbox.files.write('watched/a.txt', '1')
    await until('three events', () => events.length >= 3)
    // executor 11.26
    assert.deepEqual(events.map((e) => [e.name, e.type]), [
      ['a.txt', FilesystemEventType.CREATE],
      ['a.txt', FilesystemEventType.CHMOD],
      ['a.txt', FilesystemEventType.WRITE],
    ])
    await sandbox.files.write('watched/deep/b.txt', '2')
    await until('the nested file', () => events.some((e) => e.name === 'deep/b.txt'))
    await handle.stop()
    await assert.rejects(sandbox.files.watchDir('nothing', () => {}, failing), NotFoundError)
  })

  test('has hosts that lead into it by TLS', async () => {
    const host = sandbox.getHost(3000)
    assert.equal(host, `3000-${sandbox.sandboxId}.${process.env.E2B_DOMAIN}`)
    await sandbox.files.write('server.js', `
      const http = require('node:http')
      http.createServer((q, s) => s.end('page')).listen(3000, '127.0.0.1', () => console.log('listening'))`)
    let listening
    const ready = new Promise((resolve) => {
      listening = resolve
    })
    const server = await sandbox.commands.run('node server.js', {
      background: true,
      timeoutMs: 0,
      onStdout: listening,
    })
    await ready
    assert.equal(await (await fetch(`https://${host}/`)).text(), 'page')
    assert.equal(await server.kill(), true)
    await assert.rejects(server.wait(), CommandExitError)
    await until('the port is closed', async () => (await fetch(`https://${host}/`)).status === 502)
  })
})

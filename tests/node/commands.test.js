// `sandbox.commands` and `sandbox.pty` of the official JavaScript SDK: every method.
// scripts/test starts the server and sets E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL.

import assert from 'node:assert/strict'
import { after, afterEach, before, describe, test } from 'node:test'

import {
  AuthenticationError,
  CommandExitError,
  InvalidArgumentError,
  NotFoundError,
  Sandbox,
  SandboxError,
  TimeoutError,
} from 'e2b'

const UNKNOWN = 999_999
const size = { cols: 80, rows: 24 }

/** What came so far, and a wait for more of it, which the call's own limit ends. */
class Output {
  text = ''
  #decoder = new TextDecoder()
  #waiting = []

  add = (data) => {
    this.text += typeof data === 'string' ? data : this.#decoder.decode(data, { stream: true })
    for (const look of this.#waiting.splice(0)) look()
  }

  async shows(text) {
    while (!this.text.includes(text)) await new Promise((resolve) => this.#waiting.push(resolve))
    this.text = this.text.slice(this.text.indexOf(text) + text.length)
  }
}

/** Expects a command to be over by a signal. */
function killed(error) {
  assert.ok(error instanceof CommandExitError)
  // executor 4.4
  assert.equal(error.exitCode, -1)
  assert.equal(error.error, 'signal: killed')
  return true
}

let sandbox

before(async () => {
  sandbox = await Sandbox.create('base', { envs: { GLOBAL: 'global' }, timeoutMs: 300_000 })
})

after(async () => {
  await sandbox.kill()
})

afterEach(async () => {
  while ((await sandbox.commands.list()).length > 0);
})

describe('commands', () => {
  // executor 4.3, 4.4
  test('run gives both outputs and the exit code', async () => {
    const result = await sandbox.commands.run('echo out; echo err >&2')
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['out\n', 'err\n', 0])
    await assert.rejects(sandbox.commands.run('echo out; exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError)
      assert.deepEqual([error.exitCode, error.stdout, error.error], [3, 'out\n', 'exit status 3'])
      return true
    })
  })

  // executor 4.1, 4.2, 3.1
  test('run takes environment, directory and user', async () => {
    const run = async (...args) => (await sandbox.commands.run(...args)).stdout
    assert.equal(await run('echo $GLOBAL $OWN', { envs: { OWN: 'own' } }), 'global own\n')
    assert.equal(await run('echo $GLOBAL $OWN'), 'global\n')
    assert.equal(await run('pwd', { cwd: '/tmp' }), '/tmp\n')
    assert.equal(await run('id -un', { user: 'root' }), 'root\n')
    await assert.rejects(run('pwd', { cwd: '/nowhere' }), InvalidArgumentError)
    await assert.rejects(run('true', { user: 'stranger' }), AuthenticationError)
  })

  // executor 4.5, 11 (4)
  test('nothing of long output is lost or changed', async () => {
    const { stdout } = await sandbox.commands.run("seq 200000; printf '\\342'")
    const numbers = Array.from({ length: 200_000 }, (_, index) => `${index + 1}\n`).join('')
    assert.ok(stdout === numbers + '\ufffd', 'the output arrived changed')
  })

  // executor 4.7, 11 (3)
  test('a timeout ends the command', async () => {
    await assert.rejects(sandbox.commands.run('exec sleep 30', { timeoutMs: 500 }), TimeoutError)
  })

  // executor 4.8, 11 (7)
  test('stdin is sent in order and closed', async () => {
    const output = new Output()
    const handle = await sandbox.commands.run('cat', {
      background: true,
      stdin: true,
      onStdout: output.add,
    })
    await sandbox.commands.sendStdin(handle.pid, 'first')
    await output.shows('first')
    await sandbox.commands.sendStdin(handle.pid, '')
    await sandbox.commands.sendStdin(handle.pid, 'second')
    await sandbox.commands.closeStdin(handle.pid)
    assert.equal((await handle.wait()).stdout, 'firstsecond')
    await assert.rejects(sandbox.commands.sendStdin(handle.pid, 'late'), NotFoundError)
    const deaf = await sandbox.commands.run('exec sleep 30', { background: true })
    await assert.rejects(sandbox.commands.sendStdin(deaf.pid, 'x'), SandboxError)
    await deaf.kill()
    await assert.rejects(deaf.wait(), killed)
  })

  // executor 4.5, 4.6, 2.7
  test('connect hears the rest and the end, a disconnect leaves the process', async () => {
    const first = await sandbox.commands.run('read line; echo got $line', {
      background: true,
      stdin: true,
    })
    const second = await sandbox.commands.connect(first.pid)
    await first.disconnect()
    await sandbox.commands.sendStdin(first.pid, 'word\n')
    assert.equal((await second.wait()).stdout, 'got word\n')
    assert.equal((await (await sandbox.commands.connect(first.pid)).wait()).exitCode, 0)
    await assert.rejects(sandbox.commands.connect(UNKNOWN), NotFoundError)
  })

  // executor 4.7, 11 (2), (11), (12)
  test('list shows what runs, kill reaps it at once', async () => {
    const handle = await sandbox.commands.run('sleep 30 && true', {
      background: true,
      cwd: '/tmp',
      envs: { A: '1' },
    })
    const [info, ...others] = await sandbox.commands.list()
    assert.deepEqual(others, [])
    assert.equal(info.pid, handle.pid)
    assert.deepEqual(info.args, ['-l', '-c', 'sleep 30 && true'])
    assert.deepEqual([info.cmd, info.cwd, info.envs.A], ['/bin/bash', '/tmp', '1'])
    assert.equal(await sandbox.commands.kill(handle.pid), true)
    await assert.rejects(handle.wait(), killed)
    assert.deepEqual(await sandbox.commands.list(), [])
    const gone = await sandbox.commands.run(`kill -0 ${handle.pid} 2>/dev/null || echo gone`)
    assert.equal(gone.stdout, 'gone\n')
    assert.equal(await sandbox.commands.kill(handle.pid), false)
    assert.equal(await sandbox.commands.kill(UNKNOWN), false)
    // It may not have come to start this one.
    await sandbox.commands.run('pkill -x sleep || true')
  })

  // executor 11 (13)
  test('a client that leaves `yes` leaves no trouble', async () => {
    const output = new Output()
    // The SDK keeps its timer after it has left, and node waits for that.
    const options = { background: true, timeoutMs: 3_000, onStdout: output.add }
    const handle = await sandbox.commands.run('yes', options)
    await output.shows('y\ny\n')
    await handle.disconnect()
    assert.equal((await sandbox.commands.run('echo still')).stdout, 'still\n')
    assert.equal(await sandbox.commands.kill(handle.pid), true)
  })
})

describe('pty', () => {
  async function shell(options = {}) {
    const output = new Output()
    const handle = await sandbox.pty.create({
      ...size,
      timeoutMs: 30_000,
      onData: output.add,
      ...options,
    })
    const press = (keys) => sandbox.pty.sendInput(handle.pid, new TextEncoder().encode(keys))
    return { handle, output, press }
  }

  // executor 4.1, 4.3, 4.8, 11 (14)
  test('a shell has a terminal of the size that was asked for, and the next', async () => {
    const { handle, output, press } = await shell()
    await press('stty size; echo $TERM; tty\n')
    await output.shows('24 80\r\nxterm-256color\r\n/dev/pts/')
    await sandbox.pty.resize(handle.pid, { cols: 132, rows: 50 })
    await press('tput cols\n')
    await output.shows('\r132\r\n')
    await press('exit\n')
    assert.equal((await handle.wait()).exitCode, 0)
    await assert.rejects(sandbox.pty.resize(handle.pid, size), NotFoundError)
  })

  // executor 4.2
  test('a shell takes user, directory and environment', async () => {
    const { handle, output, press } = await shell({ user: 'root', cwd: '/tmp', envs: { OWN: 'o' } })
    await press('echo $(id -un) $(pwd) $OWN\n')
    await output.shows('root /tmp o\r\n')
    await press('exit 3\n')
    await assert.rejects(handle.wait(), (error) => error.exitCode === 3)
  })

  // executor 4.3
  test('Ctrl-C ends the foreground job only', async () => {
    const { handle, output, press } = await shell()
    await press("echo run''ning; cat\n")
    await output.shows('running\r\n')
    await press('ready\n')
    await output.shows('ready\r\nready\r\n')
    await press('\x03')
    await output.shows('^C')
    // The shell throws away what was typed before its prompt.
    await output.shows('$ ')
    await press('echo $?\n')
    await output.shows('\r130\r\n')
    await press('exit 0\n')
    assert.equal((await handle.wait()).exitCode, 0)
  })

  // executor 2.7, 11 (14)
  test('a disconnected shell goes on with the next client', async () => {
    const first = await shell()
    await first.press("kept=value; echo se''t\n")
    await first.output.shows('set\r\n')
    await first.handle.disconnect()
    const output = new Output()
    const again = await sandbox.pty.connect(first.handle.pid, { onData: output.add })
    await first.press('echo [$kept]\n')
    await output.shows('[value]\r\n')
    await first.press('exit\n')
    assert.equal((await again.wait()).exitCode, 0)
    await assert.rejects(sandbox.pty.connect(UNKNOWN, { onData: output.add }), NotFoundError)
  })

  // executor 4.7, 4.8
  test('kill ends a shell; what it is not is refused', async () => {
    const { handle } = await shell()
    await assert.rejects(sandbox.commands.sendStdin(handle.pid, 'x'), SandboxError)
    await assert.rejects(sandbox.commands.closeStdin(handle.pid), SandboxError)
    assert.equal(await sandbox.pty.kill(handle.pid), true)
    await assert.rejects(handle.wait(), killed)
    assert.equal(await sandbox.pty.kill(handle.pid), false)
    const command = await sandbox.commands.run('exec sleep 30', { background: true })
    await assert.rejects(sandbox.pty.sendInput(command.pid, new Uint8Array(1)), SandboxError)
    await assert.rejects(sandbox.pty.resize(command.pid, size), SandboxError)
    assert.equal(await command.kill(), true)
    await assert.rejects(command.wait(), killed)
  })
})

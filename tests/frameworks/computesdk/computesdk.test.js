// ComputeSDK with its E2B provider, unmodified: its own names for what the E2B SDK does.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import { e2b } from '@computesdk/e2b'
import { compute } from 'computesdk'

const provider = e2b({ apiKey: process.env.E2B_API_KEY })

describe('a sandbox of ComputeSDK', () => {
  let sandbox

  before(async () => {
    compute.setConfig({ provider })
    sandbox = await compute.sandbox.create({
      templateId: 'base',
      timeout: 300_000,
      envs: { FROM_CREATE: 'yes' },
      metadata: { made: 'by-computesdk' },
      // Passed on to the E2B SDK as it is.
      lifecycle: { onTimeout: 'pause', autoResume: true },
    })
  })

  after(async () => {
    await sandbox.destroy()
    assert.equal(await compute.sandbox.getById(sandbox.sandboxId), null)
  })

  test('runs commands', async () => {
    const result = await sandbox.runCommand('echo $FROM_CREATE $A; pwd; echo err >&2; exit 3', {
      env: { A: 'b' },
      cwd: '/tmp',
    })
    assert.deepEqual([result.exitCode, result.stderr], [3, 'err\n'])
    assert.match(result.stdout, /^yes.*\n\/tmp\n$/)
    const code = await sandbox.runCommand("python3 - <<'PY'\nprint(6 * 7)\nPY")
    assert.deepEqual([code.exitCode, code.stdout], [0, '42\n'])
  })

  test('has a file system', async () => {
    const { filesystem } = sandbox
    await filesystem.mkdir('/home/user/dir')
    await filesystem.writeFile('/home/user/dir/a.txt', 'text')
    assert.equal(await filesystem.readFile('/home/user/dir/a.txt'), 'text')
    assert.deepEqual((await filesystem.readdir('/home/user/dir')).map((entry) => entry.name), ['a.txt'])
    assert.equal(await filesystem.exists('/home/user/dir/a.txt'), true)
    await filesystem.remove('/home/user/dir/a.txt')
    assert.equal(await filesystem.exists('/home/user/dir/a.txt'), false)
  })

  test('has an address for its ports', async () => {
    assert.match(await sandbox.getUrl({ port: 3000 }), new RegExp(`^https://3000-${sandbox.sandboxId}\\.`))
  })

  test('is listed, and found by its id, which wakes a paused one', async () => {
    assert.ok((await compute.sandbox.list()).some((one) => one.sandboxId === sandbox.sandboxId))
    await sandbox.runCommand('echo kept > kept; (sleep 1000 > /dev/null 2>&1 & echo $! > pid)')
    assert.equal(await sandbox.getInstance().pause(), true)
    const again = await compute.sandbox.getById(sandbox.sandboxId)
    const look = 'cat kept; kill -0 $(cat pid) && echo alive'
    assert.equal((await again.runCommand(look)).stdout, 'kept\nalive\n')
    assert.equal(await sandbox.getInstance().pause(), true)
    // Auto-resume: a command on the object that is still held.
    assert.equal((await sandbox.runCommand(look)).stdout, 'kept\nalive\n')
  })

  test('is copied by a snapshot', async () => {
    await sandbox.filesystem.writeFile('/home/user/version', '1')
    const snapshot = await provider.snapshot.create(sandbox.sandboxId)
    const copy = await compute.sandbox.create({ snapshotId: snapshot.id })
    assert.notEqual(copy.sandboxId, sandbox.sandboxId)
    assert.equal(await copy.filesystem.readFile('/home/user/version'), '1')
    await copy.destroy()
    const { Sandbox } = await import('e2b')
    assert.equal(await Sandbox.deleteSnapshot(snapshot.id), true)
  })
})

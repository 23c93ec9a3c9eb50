// The official CLI, unmodified: pause, resume and snapshots of sandboxes (control-plane 7).

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { Sandbox } from 'e2b'

const CLI = fileURLToPath(new URL('node_modules/.bin/e2b', import.meta.url))
// No login and no project of whoever runs this.
const home = mkdtempSync(join(tmpdir(), 'sy-cli-'))

async function cli(...words) {
  const options = { env: { ...process.env, HOME: home, NO_COLOR: '1' }, cwd: home, timeout: 60_000 }
  const running = promisify(execFile)(CLI, ['sandbox', ...words], options)
  // It passes its input on to the command of `exec`.
  running.child.stdin.end()
  const { stdout, stderr } = await running
  return stdout + stderr
}

/** What the CLI says, and how it ends, of something that does not work. */
async function refused(...words) {
  try {
    return { code: 0, said: await cli(...words) }
  } catch (error) {
    return { code: error.code, said: `${error.stdout}${error.stderr}` }
  }
}

describe('the CLI', () => {
  let sandbox

  before(async () => {
    sandbox = await Sandbox.create('base', { timeoutMs: 600_000 })
    await sandbox.files.write('version', '1')
  })

  after(async () => {
    await sandbox.kill()
    rmSync(home, { recursive: true })
  })

  const info = async () => JSON.parse(await cli('info', '--format', 'json', sandbox.sandboxId))
  const listed = async (...options) => JSON.parse(await cli('list', '--format', 'json', ...options))

  test('pauses and resumes', async () => {
    const sleeper = await sandbox.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
    assert.match(await cli('pause', sandbox.sandboxId), /paused/i)
    assert.equal((await info()).state, 'paused')
    assert.ok((await listed('--state', 'paused')).some((s) => s.sandboxId === sandbox.sandboxId))
    assert.ok(!(await listed()).some((s) => s.sandboxId === sandbox.sandboxId))
    const twice = await refused('pause', sandbox.sandboxId)
    assert.match(twice.said, /already paused/i)
    assert.match(await cli('resume', sandbox.sandboxId), /resumed/i)
    assert.equal((await info()).state, 'running')
    assert.equal(await sandbox.commands.kill(sleeper.pid), true)
  })

  test('takes, lists and deletes snapshots', async () => {
    const name = `cli-${Date.now()}`
    const taken = await cli('snapshot', 'create', '--name', name, sandbox.sandboxId)
    assert.match(taken, new RegExp(`/${name}:default`))
    const shown = JSON.parse(await cli('snapshot', 'list', '--format', 'json', sandbox.sandboxId))
    assert.equal(shown.length, 1)
    const { snapshotId } = shown[0]
    assert.ok(snapshotId.endsWith(`/${name}:default`), snapshotId)
    assert.deepEqual(JSON.parse(await cli('snapshot', 'list', '--format', 'json', '--name', name)), shown)
    const copy = await Sandbox.create(snapshotId)
    assert.equal(await copy.files.read('version'), '1')
    await copy.kill()
    await cli('snapshot', 'delete', snapshotId)
    assert.deepEqual(JSON.parse(await cli('snapshot', 'list', '--format', 'json', sandbox.sandboxId)), [])
  })

  test('creates with a pause at timeout and resumes what paused itself', async () => {
    const options = ['--detach', '--lifecycle.ontimeout', 'pause', '--lifecycle.autoresume', '--timeout', '60']
    const made = await cli('create', ...options)
    const id = /\bi[a-z0-9]{20}\b/.exec(made)?.[0]
    assert.ok(id, made)
    try {
      const shown = JSON.parse(await cli('info', '--format', 'json', id))
      assert.deepEqual(shown.lifecycle, { onTimeout: 'pause', autoResume: true })
      await cli('pause', id)
      // exec connects, which resumes.
      assert.match(await cli('exec', id, 'echo', 'from-exec'), /from-exec/)
      await cli('pause', id)
    } finally {
      await cli('kill', id)
    }
    await assert.rejects(cli('resume', id))
  })

  test('says what is not there', async () => {
    const { said } = await refused('pause', 'inothere000000000000')
    assert.match(said, /wasn't found/)
  })
})

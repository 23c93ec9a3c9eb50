// The official JavaScript SDK over TLS, by host names alone: control-plane 5.4, setup B. Node.js reads
// NODE_EXTRA_CA_CERTS when it starts (5.8), so this file starts a server and then itself, with what
// `sandyard env --tls` prints. scripts/test makes the names resolve (libnss-myhostname).

import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:http2'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { CommandExitError, Sandbox } from 'e2b'

const program = process.env.SANDYARD_TEST_SERVER ?? fileURLToPath(new URL('../../.sandyard/bin/sandyard', import.meta.url))

function withoutOurs(environment) {
  const ours = /^(E2B_|SANDYARD_|SSL_CERT|NODE_EXTRA|NODE_TEST)/
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !ours.test(name)))
}

function ended(child) {
  return new Promise((resolve) => child.once('exit', (code, signal) => resolve(code ?? signal)))
}

async function withServer(use) {
  const folder = mkdtempSync(join(tmpdir(), 'sy-'))
  const environment = withoutOurs(process.env)
  const command = (...words) =>
    execFileSync(program, [...words, '--data-dir', folder], { env: environment, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  const listeners = ['api', 'proxy', 'gateway'].flatMap((name) => [`--${name}-listen`, '127.0.0.1:0'])
  const server = spawn(program, ['up', '--data-dir', folder, ...listeners], { env: environment, stdio: 'ignore' })
  const end = ended(server)
  try {
    for (const limit = Date.now() + 30_000; !existsSync(join(folder, 'server.json')); await sleep(20)) {
      assert.equal(server.exitCode, null, 'the server ended')
      assert.ok(Date.now() < limit, 'the server is not up after 30 s')
    }
    const exports = command('env', '--tls').trim().split('\n')
    const variables = Object.fromEntries(exports.map((line) => line.replace('export ', '').split(/=(.*)/s, 2)))
    await use({ ...environment, ...variables })
  } finally {
    if (server.exitCode === null) command('down')
    await end
    rmSync(folder, { recursive: true })
  }
}

if (process.env.E2B_DOMAIN === undefined || process.env.E2B_API_URL !== undefined) {
  test('all over TLS', async () => {
    await withServer(async (environment) => {
      const client = spawn(process.execPath, [fileURLToPath(import.meta.url)], { env: environment, stdio: 'inherit' })
      assert.equal(await ended(client), 0)
    })
  })
} else {
  test('commands, files and hosts over TLS', async () => {
    const domain = process.env.E2B_DOMAIN
    const sandbox = await Sandbox.create('base')
    try {
      assert.equal((await sandbox.commands.run('echo $((6 * 7))')).stdout, '42\n')
      await assert.rejects(sandbox.commands.run('exit 3'), CommandExitError)
      const bytes = new Uint8Array(randomBytes(8 << 20))
      await sandbox.files.write('data', bytes.buffer)
      const read = await sandbox.files.read('data', { format: 'bytes' })
      assert.deepEqual(Buffer.from(read), Buffer.from(bytes))
      const many = Array.from({ length: 30 }, (_, n) => sandbox.commands.run(`sleep 0.1; echo ${n}`))
      assert.deepEqual((await Promise.all(many)).map((r) => r.stdout), many.map((_, n) => `${n}\n`))

      // control-plane 5.2: a signed URL names the sandbox in its host.
      const url = new URL(await sandbox.downloadUrl('data'))
      assert.equal(url.host, `49983-${sandbox.sandboxId}.${domain}`)
      assert.deepEqual(Buffer.from(await (await fetch(url)).arrayBuffer()), Buffer.from(bytes))
      // 5.4: `https://<getHost>`.
      const host = sandbox.getHost(8000)
      assert.equal(host, `8000-${sandbox.sandboxId}.${domain}`)
      const closed = await fetch(`https://${host}/`)
      assert.equal(closed.status, 502)
      assert.equal(closed.headers.get('content-type'), 'application/json; charset=utf-8')
      assert.deepEqual(await closed.json(), {
        sandboxId: sandbox.sandboxId,
        port: 8000,
        code: 502,
        message: 'The sandbox is running but port is not open',
      })
      await sandbox.commands.run('python3 -m http.server --bind ::1 8000', { background: true })
      await sandbox.commands.run("until ss -Hltn 'sport = :8000' | grep -q .; do sleep 0.02; done")
      assert.equal((await fetch(`https://${host}/`)).status, 200)
    } finally {
      assert.equal(await sandbox.kill(), true)
    }
    // 8.42
    const gone = await fetch(`https://${sandbox.getHost(8000)}/`)
    assert.deepEqual([gone.status, await gone.json()], [
      502,
      { sandboxId: sandbox.sandboxId, code: 502, message: 'The sandbox was not found' },
    ])
  })

  test('HTTP/2 is served where it is offered', async () => {
    // control-plane 5.8: ALPN.
    const session = connect(`https://api.${process.env.E2B_DOMAIN}`)
    const answer = session.request({ ':path': '/health' })
    const [headers] = await new Promise((resolve, reject) => {
      session.once('error', reject)
      answer.once('response', (...all) => resolve(all))
    })
    assert.equal(session.alpnProtocol, 'h2')
    assert.equal(headers[':status'], 200)
    answer.close()
    session.close()
  })
}

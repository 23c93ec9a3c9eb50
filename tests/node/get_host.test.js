// `getHost` of the official JavaScript SDK: a server inside a sandbox, from outside, under the name it gives.
// Without TLS; the name is sent as `Host` to the proxy's address, as a client that resolves it would.

import assert from 'node:assert/strict'
import { request } from 'node:http'
import { test } from 'node:test'
import { text } from 'node:stream/consumers'

import { Sandbox } from 'e2b'

function ask(host, path = '/') {
  return new Promise((resolve, reject) => {
    request(new URL(path, process.env.E2B_SANDBOX_URL), { headers: { Host: host } }, (response) => {
      text(response).then((body) => resolve({ status: response.statusCode, body }), reject)
    }).on('error', reject).end()
  })
}

test('getHost leads to a server on loopback inside, and says when nothing listens', async () => {
  const sandbox = await Sandbox.create('base')
  try {
    const host = sandbox.getHost(3000)
    // control-plane 5.2: port, id and the domain that the server tells, with the proxy's port.
    const port = new URL(process.env.E2B_SANDBOX_URL).port
    assert.equal(host, `3000-${sandbox.sandboxId}.sbx.localhost:${port}`)
    const closed = await ask(host)
    assert.equal(closed.status, 502)
    assert.deepEqual(JSON.parse(closed.body), {
      sandboxId: sandbox.sandboxId,
      port: 3000,
      code: 502,
      message: 'The sandbox is running but port is not open',
    })
    await sandbox.files.write('server.js', `
      const http = require('node:http')
      const server = http.createServer((q, s) => s.end(q.url + ' ' + q.headers.host))
      server.listen(3000, '127.0.0.1', () => console.log('listening'))`)
    await new Promise((resolve, reject) => {
      sandbox.commands
        .run('node server.js', { background: true, timeoutMs: 0, onStdout: resolve })
        .then((handle) => handle.wait())
        .then(() => reject(new Error('the server ended')), reject)
    })
    // executor 9.3: reached on loopback, at once; the service sees the outer name (control-plane 8.44).
    assert.deepEqual(await ask(host, '/a?b=c'), { status: 200, body: `/a?b=c ${host}` })
  } finally {
    await sandbox.kill()
  }
  // control-plane 8.42
  const dead = await ask(sandbox.getHost(3000))
  assert.equal(dead.status, 502)
  assert.deepEqual(JSON.parse(dead.body), {
    message: 'The sandbox was not found',
    sandboxId: sandbox.sandboxId,
    code: 502,
  })
})

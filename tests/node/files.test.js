// `sandbox.files` of the official JavaScript SDK: every method, and watching.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, before, describe, test } from 'node:test'

import {
  AuthenticationError,
  FileNotFoundError,
  FilesystemEventType,
  FileType,
  InvalidArgumentError,
  Sandbox,
  SandboxError,
  TimeoutError,
} from 'e2b'

const noise = randomBytes(300_000)
const lines = Array.from({ length: 20_000 }, (_, n) => `line ${n} of a log\n`).join('')

const arrayBuffer = (bytes) => bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)

async function collect(stream) {
  const chunks = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

describe('files', () => {
  let sandbox
  let files

  before(async () => {
    sandbox = await Sandbox.create('base', {
      metadata: { session: `node-files-${process.pid}` },
      timeoutMs: 300_000,
    })
    files = sandbox.files
  })

  after(() => sandbox.kill())

  test('that are refused are so however much is sent', async () => {
    // executor 10: the refusal itself, and no connection that breaks under the upload
    await files.makeDir('taken')
    const large = new ArrayBuffer(16 << 20)
    for (let n = 0; n < 5; n++) {
      await assert.rejects(files.write('taken', large), (error) => {
        assert.ok(error instanceof InvalidArgumentError, `${error}`)
        assert.match(error.message, /is a directory/)
        return true
      })
      await assert.rejects(files.write('x', large, { user: 'nosuch' }), AuthenticationError)
    }
  })

  test('are written and read in every form', async () => {
    // executor 6.4, 6.5, 11.16, 11.17, 11.20, 11.21
    for (const [name, data] of [
      ['text', 'grüße, 世界\n'],
      ['empty', ''],
      ['lines', lines],
      ['noise', noise],
    ]) {
      const bytes = Buffer.from(data)
      const path = `forms/${name}`
      for (const form of [
        typeof data === 'string' ? data : arrayBuffer(bytes),
        arrayBuffer(bytes),
        new Blob([bytes]),
        new Blob([bytes]).stream(),
      ]) {
        const info = await files.write(path, form)
        assert.deepEqual([info.name, info.path, info.type], [name, `/home/user/${path}`, 'file'])
        assert.deepEqual(Buffer.from(await files.read(path, { format: 'bytes' })), bytes)
      }
      for (const gzip of [false, true]) {
        await files.write(path, arrayBuffer(bytes), { gzip })
        for (const readGzip of [false, true]) {
          const read = (format) => files.read(path, { format, gzip: readGzip })
          assert.deepEqual(Buffer.from(await read('bytes')), bytes)
          assert.deepEqual(Buffer.from(await (await read('blob')).arrayBuffer()), bytes)
          assert.deepEqual(await collect(await read('stream')), bytes)
          if (typeof data === 'string') assert.equal(await read('text'), data)
        }
      }
      const entry = await files.getInfo(path)
      assert.deepEqual(
        [entry.size, entry.mode, entry.permissions, entry.owner, entry.group],
        [bytes.length, 0o644, '-rw-r--r--', 'user', 'user'],
      )
    }
  })

  test('go several at once, with directories and metadata', async () => {
    // executor 6.5, 11.24
    const names = ['one', 'two/three', 'ünï cödé/文 ; +&.txt']
    const entries = names.map((name) => ({ path: `several/${name}`, data: name }))
    const metadata = { author: 'me' }
    const written = await files.writeFiles(entries, { metadata })
    assert.deepEqual(written.map((info) => info.path), names.map((n) => `/home/user/several/${n}`))
    for (const name of names) {
      assert.equal(await files.read(`several/${name}`), name)
      assert.deepEqual((await files.getInfo(`several/${name}`)).metadata, metadata)
    }
    const again = await files.write('several/one', 'x')
    assert.equal(again.metadata, undefined)
    await Promise.all([1, 2, 3, 4].map((n) => files.write(`parallel/nested/${n}`, `${n}`)))
    assert.equal((await files.list('parallel/nested')).length, 4)
  })

  test('are listed, looked at, moved and removed', async () => {
    // executor 5.2, 5.3, 11.22, 11.23
    assert.equal(await files.makeDir('d/sub'), true)
    assert.equal(await files.makeDir('d/sub'), false)
    await files.write('d/a', 'x')
    await files.write('d/sub/deep', '')
    const paths = async (depth) => (await files.list('d', { depth })).map((entry) => entry.path)
    assert.deepEqual(await paths(1), ['/home/user/d/a', '/home/user/d/sub'])
    assert.deepEqual(await paths(2), [
      '/home/user/d/a', '/home/user/d/sub', '/home/user/d/sub/deep',
    ])
    await assert.rejects(files.list('d', { depth: 0 }), InvalidArgumentError)
    await sandbox.commands.run('ln -s a d/link')
    const link = await files.getInfo('d/link')
    assert.deepEqual([link.type, link.symlinkTarget], [FileType.FILE, '/home/user/d/a'])
    assert.ok(link.modifiedTime instanceof Date)
    assert.equal((await files.rename('d/a', 'd/new/b')).path, '/home/user/d/new/b')
    assert.equal(await files.exists('d/a'), false)
    assert.equal(await files.exists('d/new/b'), true)
    await files.remove('d')
    assert.equal(await files.exists('d'), false)
    await files.remove('d')
  })

  test('that cannot be are refused by name', async () => {
    // executor 10
    await files.write('file', 'x')
    await assert.rejects(files.read('none'), FileNotFoundError)
    await assert.rejects(files.list('none'), FileNotFoundError)
    await assert.rejects(files.getInfo('none'), FileNotFoundError)
    await assert.rejects(files.rename('none', 'x'), FileNotFoundError)
    await assert.rejects(files.read('/tmp'), InvalidArgumentError)
    await assert.rejects(files.write('/tmp', 'x'), InvalidArgumentError)
    await assert.rejects(files.makeDir('file'), InvalidArgumentError)
    await assert.rejects(files.list('file'), InvalidArgumentError)
    await assert.rejects(files.read('~nobody/x'), InvalidArgumentError)
    await assert.rejects(files.write('file/below', 'x'), SandboxError)
    await assert.rejects(files.list('.', { user: 'nosuch' }), AuthenticationError)
  })

  test('have URLs that are signed for one use', async () => {
    // executor 3.3, 11.18
    const upload = await sandbox.uploadUrl('signed.txt', { useSignatureExpiration: 60 })
    const form = new FormData()
    form.append('file', 'a field without a file name')
    const answer = await fetch(upload, { method: 'POST', body: form })
    assert.deepEqual(await answer.json(), [
      { name: 'signed.txt', path: '/home/user/signed.txt', type: 'file' },
    ])
    const download = await sandbox.downloadUrl('signed.txt')
    assert.equal(await (await fetch(download)).text(), 'a field without a file name')
    const expired = await fetch(
      await sandbox.downloadUrl('signed.txt', { useSignatureExpiration: -120 }))
    assert.equal(expired.status, 401)
    assert.deepEqual(await expired.json(), { code: 401, message: 'signature is already expired' })
  })

  /** Watches a new directory and lets `act` happen in it; tells what was told until `done`. */
  async function watch(folder, options, act, done) {
    await files.makeDir(folder)
    const seen = []
    let news
    const complete = new Promise((resolve) => (news = resolve))
    const handle = await files.watchDir(
      folder,
      (event) => {
        seen.push(event)
        if (done(event, seen)) news()
      },
      options,
    )
    await act()
    await complete
    await handle.stop()
    return seen
  }

  test('are watched, exactly', { timeout: 20_000 }, async () => {
    // executor 5.4, 11.26
    const seen = await watch('watched', {}, () => files.write('watched/f', 'x'),
      (event) => event.type === FilesystemEventType.WRITE)
    assert.deepEqual(seen.map((event) => [event.type, event.name]), [
      [FilesystemEventType.CREATE, 'f'],
      [FilesystemEventType.CHMOD, 'f'],
      [FilesystemEventType.WRITE, 'f'],
    ])
  })

  test('are watched in new directories, with entries', { timeout: 20_000 }, async () => {
    // executor 5.4, 11.27, 11.29
    const seen = await watch('tree', { recursive: true, includeEntry: true },
      async () => {
        await files.makeDir('tree/new')
        await files.write('tree/new/f', '12345')
      },
      (event) => event.type === FilesystemEventType.WRITE)
    const last = seen.at(-1)
    assert.deepEqual([last.name, last.entry.path], ['new/f', '/home/user/tree/new/f'])
    assert.equal(last.entry.size, 5)
  })

  test('of the workspace are watched where it is asked for', { timeout: 20_000 }, async () => {
    // executor 5.4
    await assert.rejects(files.watchDir('/workspace', () => {}), InvalidArgumentError)
    const seen = await watch('/workspace/artifacts/w', { allowNetworkMounts: true },
      () => files.write('/workspace/artifacts/w/f', 'x'),
      (event) => event.type === FilesystemEventType.WRITE)
    assert.deepEqual([seen[0].type, seen[0].name], [FilesystemEventType.CREATE, 'f'])
  })

  test('that cannot be watched, and watching that ends', { timeout: 20_000 }, async () => {
    // executor 5.4, 11.28, 2.5
    await files.write('plain', 'x')
    await assert.rejects(files.watchDir('none', () => {}), FileNotFoundError)
    await assert.rejects(files.watchDir('plain', () => {}), InvalidArgumentError)
    const error = await new Promise((resolve, reject) => {
      files.watchDir('.', () => {}, { timeoutMs: 500, onExit: resolve }).catch(reject)
    })
    assert.ok(error instanceof TimeoutError, `${error}`)
  })
})

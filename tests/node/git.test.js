// `sandbox.git` of the official JavaScript SDK: every method. As in tests/python/test_git.py, what is pinned
// is what the SDK stands on: git in the image (executor 9.1), commands in a login shell with their own
// environment (executor 4.1) as the named user (4.2), exit codes and both outputs (4.3, 4.4).

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, beforeEach, describe, test } from 'node:test'

import {
  CommandExitError,
  GitAuthError,
  GitUpstreamError,
  InvalidArgumentError,
  Sandbox,
} from 'e2b'

const PORT = 8418
const credentials = { username: 'ada', password: 'secret-token' }
const REMOTES = '/home/user/remotes'

// A remote inside the sandbox that lets in one user only: GitHub's role, without a network.
const HTTP_REMOTE = `
const { spawnSync } = require('node:child_process')
const wanted = 'Basic ' + Buffer.from('${credentials.username}:${credentials.password}').toString('base64')
require('node:http').createServer(async (request, response) => {
  const chunks = []
  for await (const chunk of request) chunks.push(chunk)
  if (request.headers.authorization !== wanted) {
    response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="git"' }).end()
    return
  }
  const input = Buffer.concat(chunks)
  const [path, query = ''] = request.url.split('?')
  const env = {
    ...process.env, GIT_PROJECT_ROOT: '${REMOTES}', GIT_HTTP_EXPORT_ALL: '1', PATH_INFO: path,
    QUERY_STRING: query, REQUEST_METHOD: request.method, REMOTE_USER: '${credentials.username}',
    CONTENT_TYPE: request.headers['content-type'] ?? '', CONTENT_LENGTH: String(input.length),
    HTTP_CONTENT_ENCODING: request.headers['content-encoding'] ?? '',
  }
  const { stdout } = spawnSync('git', ['http-backend'], { input, env, maxBuffer: 1 << 26 })
  const end = stdout.indexOf('\\r\\n\\r\\n')
  let status = 200
  for (const line of stdout.subarray(0, end).toString().split('\\r\\n')) {
    const [name, value] = line.split(': ')
    if (name === 'Status') status = Number.parseInt(value)
    else response.setHeader(name, value)
  }
  response.writeHead(status).end(stdout.subarray(end + 4))
}).listen(${PORT}, '127.0.0.1', () => console.log('listening'))
`

// A command that failed in the sandbox, with this exit code and this in one of its outputs.
function exits(code, text) {
  return (error) => {
    assert.ok(error instanceof CommandExitError, String(error))
    assert.equal(error.exitCode, code)
    assert.match(error.stderr + error.stdout, text)
    return true
  }
}

describe('sandbox.git', () => {
  let sandbox, git, home

  const sh = async (command) => (await sandbox.commands.run(command, { cwd: home })).stdout
  const at = (name) => `${home}/${name}`

  // A repository with one commit, which holds `a.txt`, on branch `main`.
  async function repository(name = 'repo') {
    await git.init(at(name), { initialBranch: 'main' })
    await sandbox.files.write(at(`${name}/a.txt`), 'one\n')
    await git.add(at(name))
    await git.commit(at(name), 'first')
    return at(name)
  }

  // A bare repository that holds the commit of `repository`.
  async function remote() {
    await repository('source')
    await sh('git clone --quiet --bare source remote.git')
    return at('remote.git')
  }

  // The URL of a fresh repository behind the HTTP remote.
  async function httpRemote() {
    const name = `${randomUUID()}.git`
    await remote()
    await sh(`mkdir -p ${REMOTES} && cp -r remote.git ${REMOTES}/${name} && ` +
      `git -C ${REMOTES}/${name} config http.receivepack true`)
    return `http://127.0.0.1:${PORT}/${name}`
  }

  before(async () => {
    sandbox = await Sandbox.create('base', { timeoutMs: 300_000 })
    git = sandbox.git
    await git.configureUser('Ada', 'ada@example.org')
    await sandbox.files.write('/home/user/remote.js', HTTP_REMOTE)
    await new Promise((resolve, reject) => {
      sandbox.commands
        .run('node /home/user/remote.js', { background: true, timeoutMs: 0, onStdout: resolve })
        .then((handle) => handle.wait())
        .then(() => reject(new Error('the HTTP remote ended')), reject)
    })
  })

  after(async () => {
    await sandbox.kill()
  })

  beforeEach(async () => {
    home = `/home/user/${randomUUID()}`
    await sandbox.files.makeDir(home)
  })

  test('init makes a repository, where the user may', async () => {
    const result = await git.init(at('repo'), { initialBranch: 'trunk' })
    assert.equal(result.exitCode, 0)
    const status = await git.status(at('repo'))
    assert.equal(status.currentBranch, 'trunk')
    assert.ok(status.isClean && !status.detached)
    assert.match((await git.init(at('repo'))).stdout, /Reinitialized existing/)
    await git.init(at('bare'), { bare: true })
    assert.equal(await sh('git -C bare rev-parse --is-bare-repository'), 'true\n')
    await assert.rejects(git.init('/root/repo'), exits(128, /Permission denied/))
    // The same as root, and with a path relative to the working directory (executor 4.2).
    await git.init('by-root', { user: 'root', cwd: home })
    assert.equal(await sh('stat -c %U by-root/.git'), 'root\n')
  })

  test('clone takes path, branch and depth, and fails as git does', async () => {
    const url = await remote()
    await git.clone(url, { path: at('plain') })
    await git.createBranch(at('plain'), 'side')
    await git.commit(at('plain'), 'second', { allowEmpty: true })
    await git.push(at('plain'), { remote: 'origin', branch: 'side' })
    // --depth counts only over a transport, so not for a plain path.
    await git.clone(`file://${url}`, { path: at('shallow'), branch: 'side', depth: 1 })
    assert.equal(await sh('git -C shallow log --format=%s'), 'second\n')
    await git.clone(url, { cwd: home })
    assert.ok(await sandbox.files.exists(at('remote/a.txt')))

    await assert.rejects(git.clone(at('nothing'), { path: at('copy') }), exits(128, /does not exist/))
    await assert.rejects(git.clone(url, { path: at('plain') }), exits(128, /not an empty directory/))
    await assert.rejects(git.clone(url, { path: at('copy'), password: 'x' }), InvalidArgumentError)
    await assert.rejects(git.clone(url, { path: at('copy'), ...credentials }), InvalidArgumentError)
    assert.equal(await sandbox.files.exists(at('copy')), false)
  })

  test('status tells every kind of change, and the distance to the upstream', async () => {
    const url = await remote()
    const path = at('repo')
    await git.clone(url, { path })
    for (const name of ['modified', 'deleted', 'renamed']) {
      await sandbox.files.write(`${path}/${name}`, `${name}\n`.repeat(3))
    }
    await git.add(path)
    await git.commit(path, 'second')
    await sandbox.files.write(`${path}/modified`, 'changed')
    await sandbox.files.remove(`${path}/deleted`)
    await sandbox.commands.run('git mv renamed new-name', { cwd: path })
    await sandbox.files.write(`${path}/untracked`, '')
    const status = await git.status(path)
    const found = status.fileStatus
      .map((f) => [f.name, f.status, f.staged, f.renamedFrom])
      .sort(([a], [b]) => (a < b ? -1 : 1))
    assert.deepEqual(found, [
      ['deleted', 'deleted', false, undefined],
      ['modified', 'modified', false, undefined],
      ['new-name', 'renamed', true, 'renamed'],
      ['untracked', 'untracked', false, undefined],
    ])
    assert.deepEqual([status.totalCount, status.stagedCount, status.untrackedCount], [4, 1, 1])
    assert.deepEqual([status.currentBranch, status.upstream], ['main', 'origin/main'])
    assert.deepEqual([status.ahead, status.behind], [1, 0])
    await assert.rejects(git.status(home), exits(128, /not a git repository/))
  })

  test('branches are made, changed and deleted', async () => {
    const path = await repository()
    await git.createBranch(path, 'feature/ü')
    assert.deepEqual(await git.branches(path), {
      branches: ['feature/ü', 'main'],
      currentBranch: 'feature/ü',
    })
    await git.commit(path, 'only here', { allowEmpty: true })
    await git.checkoutBranch(path, 'main')
    await assert.rejects(git.checkoutBranch(path, 'nothing'), exits(1, /did not match/))
    await assert.rejects(git.createBranch(path, 'main'), exits(128, /already exists/))
    await assert.rejects(git.deleteBranch(path, 'feature/ü'), exits(1, /not fully merged/))
    await git.deleteBranch(path, 'feature/ü', { force: true })
    assert.deepEqual((await git.branches(path)).branches, ['main'])
  })

  test('add takes all or the named files, and commit keeps message and author', async () => {
    const path = await repository()
    const names = ['$(touch hacked)', '-dash', "it's", 'two words']
    for (const name of [...names, 'other']) await sandbox.files.write(`${path}/${name}`, '')
    // Names reach git as they are, whatever a shell would make of them.
    await git.add(path, { files: names })
    const listed = await sh("git -C repo diff --cached --name-only -z | tr '\\0' '\\n'")
    assert.deepEqual(listed.trimEnd().split('\n').sort(), names)
    await git.add(path)
    assert.equal((await git.status(path)).stagedCount, 5)
    await assert.rejects(git.add(path, { files: ['nothing'] }), exits(128, /did not match any files/))

    const message = 'it\'s "quoted" $HOME `id`\n\n- ü 中\n'
    await git.commit(path, message, { authorName: 'Grace Hopper', authorEmail: 'g@example.org' })
    assert.equal(await sh('git -C repo log -1 --format=%B'), `${message}\n`)
    assert.equal(await sh("git -C repo log -1 --format='%an <%ae>'"), 'Grace Hopper <g@example.org>\n')
    await assert.rejects(git.commit(path, 'nothing'), exits(1, /nothing to commit/))
    // The call's own environment counts (executor 4.1): here, git without the global configuration.
    const envs = {
      GIT_CONFIG_GLOBAL: '/dev/null',
      GIT_CONFIG_COUNT: '1',
      GIT_CONFIG_KEY_0: 'user.useConfigOnly',
      GIT_CONFIG_VALUE_0: 'true',
    }
    const nobody = git.commit(path, 'x', { allowEmpty: true, envs })
    await assert.rejects(nobody, exits(128, /Please tell me who you are/))
  })

  test('reset and restore take back', async () => {
    const path = await repository()
    await sandbox.files.write(`${path}/a.txt`, 'two\n')
    await git.add(path)
    await git.commit(path, 'second')
    await git.reset(path, { mode: 'soft', target: 'HEAD~1' })
    assert.equal((await git.status(path)).stagedCount, 1)
    await git.restore(path, { paths: ['a.txt'], staged: true })
    const status = await git.status(path)
    assert.deepEqual([status.stagedCount, status.unstagedCount], [0, 1])
    await git.restore(path, { paths: ['.'] })
    assert.equal(await sandbox.files.read(`${path}/a.txt`), 'one\n')
    await git.commit(path, 'third', { allowEmpty: true })
    await git.reset(path, { mode: 'hard', target: 'HEAD~1' })
    assert.equal(await sh('git -C repo log --format=%s'), 'first\n')
    await assert.rejects(git.reset(path, { mode: 'softly' }), InvalidArgumentError)
    await assert.rejects(git.reset(path, { target: 'nothing' }), exits(128, /nothing/))
    await assert.rejects(git.restore(path, { paths: [] }), InvalidArgumentError)
    await assert.rejects(git.restore(path, { paths: ['nothing'] }), exits(1, /did not match any file/))
  })

  test('remotes are added, changed and read', async () => {
    const url = await remote()
    const path = await repository()
    assert.equal(await git.remoteGet(path, 'origin'), undefined)
    await git.remoteAdd(path, 'origin', '/elsewhere')
    await assert.rejects(git.remoteAdd(path, 'origin', url), exits(3, /already exists/))
    await git.remoteAdd(path, 'origin', url, { fetch: true, overwrite: true })
    assert.equal(await git.remoteGet(path, 'origin'), url)
    assert.equal(await sh('git -C repo rev-parse --abbrev-ref origin/main'), 'origin/main\n')
    await assert.rejects(git.remoteAdd(path, '', url), InvalidArgumentError)
  })

  test('push and pull bring commits over, and name what is missing', async () => {
    const url = await remote()
    for (const name of ['ours', 'theirs']) {
      await git.clone(url, { path: at(name) })
      await sandbox.files.write(at(`${name}/a.txt`), `${name}\n`)
      await git.add(at(name))
      await git.commit(at(name), name)
    }
    await git.push(at('theirs'))
    await assert.rejects(git.push(at('ours')), exits(1, /fetch first/))
    await git.setConfig('pull.rebase', 'false', { scope: 'local', path: at('ours') })
    await assert.rejects(git.pull(at('ours')), exits(1, /CONFLICT/))
    const status = await git.status(at('ours'))
    assert.ok(status.hasConflicts)
    await git.reset(at('ours'), { mode: 'hard', target: 'origin/main' })
    assert.match((await git.pull(at('ours'))).stdout, /Already up to date/)

    const path = await repository()
    await git.remoteAdd(path, 'origin', url)
    await assert.rejects(git.push(path, { setUpstream: false }), GitUpstreamError)
    await assert.rejects(git.pull(path), GitUpstreamError)
    await assert.rejects(git.push(path, { password: 'x' }), InvalidArgumentError)
    await assert.rejects(git.pull(path, { password: 'x' }), InvalidArgumentError)
  })

  test('configuration in each scope', async () => {
    const path = await repository()
    const key = `sandyard.k${randomUUID()}`
    assert.equal(await git.getConfig(key), undefined)
    await git.setConfig(key, "it's $HOME")
    assert.equal(await git.getConfig(key), "it's $HOME")
    await git.setConfig(key, 'here', { scope: 'local', path })
    assert.equal(await git.getConfig(key, { scope: 'local', path }), 'here')
    await assert.rejects(git.setConfig(key, 'x', { scope: 'system' }), exits(255, /could not lock/))
    await git.setConfig(key, 'all', { scope: 'system', user: 'root' })
    assert.equal(await git.getConfig(key, { scope: 'system' }), 'all')
    for (const opts of [{ scope: 'world' }, { scope: 'local' }]) {
      await assert.rejects(git.setConfig(key, 'x', opts), InvalidArgumentError)
      await assert.rejects(git.getConfig(key, opts), InvalidArgumentError)
    }
    await git.configureUser('Only Here', 'here@example.org', { scope: 'local', path })
    assert.equal(await git.getConfig('user.email', { scope: 'local', path }), 'here@example.org')
    await assert.rejects(git.configureUser('', 'x@example.org'), InvalidArgumentError)
  })

  test('credentials are demanded, used and not kept', async () => {
    const url = await httpRemote()
    const path = at('copy')
    await assert.rejects(git.clone(url, { path }), GitAuthError)
    await assert.rejects(git.clone(url, { path, username: 'ada' }), GitAuthError)
    await assert.rejects(git.clone(url, { path, ...credentials, password: 'wrong' }), GitAuthError)
    await git.clone(url, { path, ...credentials })
    assert.equal(await git.remoteGet(path, 'origin'), url)
    await git.commit(path, 'through HTTP', { allowEmpty: true })
    await assert.rejects(git.push(path), GitAuthError)
    await git.push(path, credentials)
    await git.pull(path, credentials)
    await sh(`! grep -r ${credentials.password} copy`)
    await git.clone(url, { path: at('kept'), dangerouslyStoreCredentials: true, ...credentials })
    assert.match(await git.remoteGet(at('kept'), 'origin'), /ada:secret-token@/)
    await assert.rejects(git.clone(url, { path: at('again') }), GitAuthError)

    const host = `127.0.0.1:${PORT}`
    const protocol = 'http'
    await assert.rejects(
      git.dangerouslyAuthenticate({ username: 'ada', password: '', host, protocol }),
      InvalidArgumentError,
    )
    await git.dangerouslyAuthenticate({ ...credentials, host, protocol })
    await git.clone(url, { path: at('again') })
    assert.equal(await sh('git -C again log -1 --format=%s'), 'through HTTP\n')
    await sh('git config --global --unset credential.helper; rm ~/.git-credentials')
  })
})

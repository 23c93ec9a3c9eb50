// The code interpreter by the official JavaScript package. The image comes from `scripts/setup interpreter`.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { Sandbox, NotFoundError, TimeoutError } from '@e2b/code-interpreter'

let sandbox

before(async () => {
  sandbox = await Sandbox.create({ timeoutMs: 600_000, envs: { GLOBAL: 'of the sandbox' } })
})

after(async () => {
  await sandbox?.kill()
})

test('a value, its count, and state over calls', async () => {
  const first = await sandbox.runCode('x =1; x')
  assert.equal(first.text, '1')
  assert.equal(first.executionCount, 1)
  assert.equal((await sandbox.runCode('x + 1')).text, '2')
})

test('output by callbacks and in logs', async () => {
  const heard = []
  const ran = await sandbox.runCode("import sys\nprint('out')\nprint('err', file=sys.stderr)\n1/0", {
    onStdout: (message) => heard.push(message.line),
    onStderr: (message) => heard.push(message.line),
    onError: (error) => heard.push(error.name),
  })
  assert.deepEqual(ran.logs, { stdout: ['out\n'], stderr: ['err\n'] })
  assert.deepEqual(heard, ['out\n', 'err\n', 'ZeroDivisionError'])
  assert.equal(ran.error.value, 'division by zero')
})

test('JavaScript, TypeScript and bash', async () => {
  const run = (code, language) => sandbox.runCode(code, { language })
  assert.deepEqual((await run("console.log('Hello World!')", 'js')).logs.stdout, ['Hello World!\n'])
  assert.equal((await run("import os from 'os'; await Promise.resolve(typeof os.EOL)", 'js')).text, 'string')
  assert.equal((await run('const n: number = 2; n', 'ts')).text, '2')
  assert.deepEqual((await run('echo hi', 'bash')).logs.stdout, ['hi\n'])
})

test('variables of the sandbox and of a call', async () => {
  const code = "process.env.GLOBAL + ',' + process.env.OWN"
  const run = async (envs) => (await sandbox.runCode(code, { language: 'js', envs })).text
  assert.equal(await run({ GLOBAL: 'mine', OWN: 'a "b"' }), 'mine,a "b"')
  assert.equal(await run(), 'of the sandbox,undefined')
})

test('contexts', async () => {
  const context = await sandbox.createCodeContext({ language: 'javascript', cwd: '/tmp' })
  const listed = await sandbox.listCodeContexts()
  assert.deepEqual(listed.at(-1), context)
  assert.deepEqual(listed.slice(0, 2).map((c) => c.language), ['python', 'javascript'])
  assert.equal((await sandbox.runCode('process.cwd()', { context })).text, '/tmp')
  await sandbox.restartCodeContext(context.id)
  await sandbox.removeCodeContext(context)
  await assert.rejects(sandbox.runCode('1', { context }), NotFoundError)
})

test('a plot has a picture and a chart', async () => {
  const { results } = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\n[1, None]')
  assert.equal(results.length, 2)
  assert.equal(results[0].chart.type, 'line')
  assert.deepEqual(results[0].extra, {})
  assert.deepEqual(results[0].formats(), ['png'])
  assert.deepEqual(results[1].json, [1, null])
})

test('a table whose numbers JSON does not have', async () => {
  const { results } = await sandbox.runCode("import pandas as pd\npd.DataFrame({'a': [1, float('inf')]})")
  assert.deepEqual(results[0].data, { a: [1, null] })
})

test('a timeout leaves the context usable', async () => {
  await assert.rejects(sandbox.runCode('import time; time.sleep(300)', { timeoutMs: 2000 }), TimeoutError)
  assert.equal((await sandbox.runCode('1 + 1', { timeoutMs: 10_000 })).text, '2')
})

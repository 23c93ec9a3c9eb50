// What every release of @e2b/code-interpreter can do, as calls.py for Python. Prints `passed`.
//
//   calls.mjs PACKAGE

import assert from 'node:assert/strict'

const { Sandbox } = await import(process.argv[2])

const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
try {
  const first = await sandbox.runCode("x = 1\nprint('out')\nx")
  assert.deepEqual([first.text, first.logs.stdout, first.error], ['1', ['out\n'], undefined])
  assert.equal(first.executionCount, 1)

  const heard = []
  const failed = await sandbox.runCode("print('a')\n1/0", { onStdout: (message) => heard.push(message.line), envs: { A: '1' } })
  assert.equal(failed.error.name, 'ZeroDivisionError')
  assert.deepEqual(heard, ['a\n'])

  const context = await sandbox.createCodeContext({ cwd: '/tmp', language: 'js' })
  assert.equal((await sandbox.runCode('process.cwd()', { context })).text, '/tmp')

  const { results } = await sandbox.runCode('import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()')
  assert.ok(results[0].png)
  assert.equal(results[0].chart.type, 'line')

  await assert.rejects(sandbox.runCode('import time; time.sleep(60)', { timeoutMs: 2_000 }), /imeout|timed out|aborted/)
  assert.equal((await sandbox.runCode('x + 1', { timeoutMs: 20_000 })).text, '2')
} finally {
  await sandbox.kill()
}
console.log('passed')

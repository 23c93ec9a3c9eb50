// From a cell to a script that the console mode of the inspector can evaluate: types go, `import` declarations become
// calls, `export` goes.
'use strict';

const acorn = require('acorn');

let sucrase;

function withoutTypes(code) {
    // Most cells of JavaScript contexts have no types.
    sucrase ??= require('sucrase');
    return sucrase.transform(code, {
        transforms: ['typescript'],
        disableESTransforms: true,
        // What a cell imports, later cells use.
        keepUnusedImports: true,
        preserveDynamicImport: true,
    }).code;
}

function parse(code) {
    const options = { ecmaVersion: 'latest', allowAwaitOutsideFunction: true, allowHashBang: true };
    try {
        return acorn.parse(code, { ...options, sourceType: 'module' });
    } catch (error) {
        // Modules are strict; consoles are not.
        try {
            return acorn.parse(code, { ...options, sourceType: 'script' });
        } catch {
            throw error;
        }
    }
}

// Throws a SyntaxError.
function toScript(code, language) {
    let text = code;
    let tree;
    if (language === 'typescript') {
        text = withoutTypes(code);
        tree = parse(text);
    } else {
        try {
            tree = parse(text);
        } catch (error) {
            // With types, perhaps. If it is not that either, the first error is what the user has to hear.
            try {
                text = withoutTypes(code);
                tree = parse(text);
            } catch {
                throw error;
            }
        }
    }
    return rewrite(text, tree);
}

function rewrite(text, tree) {
    const edits = [];
    const replace = (start, end, by) => edits.push({ start, end, by });
    for (const node of tree.body) {
        switch (node.type) {
            case 'ImportDeclaration':
                replace(node.start, node.end, importCall(text, node));
                break;
            case 'ExportAllDeclaration':
                replace(node.start, node.end, `await __sandyard.import(${text.slice(node.source.start, node.source.end)});`);
                break;
            case 'ExportNamedDeclaration':
                if (node.declaration) replace(node.start, node.declaration.start, '');
                else if (node.source) replace(node.start, node.end, `await __sandyard.import(${text.slice(node.source.start, node.source.end)});`);
                else replace(node.start, node.end, ';');
                break;
            case 'ExportDefaultDeclaration': {
                const named = /Declaration$/.test(node.declaration.type) && node.declaration.id;
                if (named) replace(node.start, node.declaration.start, '');
                else {
                    replace(node.start, node.declaration.start, '(');
                    const end = node.declaration.end;
                    replace(end, node.end > end ? node.end : end, ');');
                }
                break;
            }
        }
    }
    walk(tree, (node) => {
        if (node.type === 'ImportExpression') replace(node.start, node.start + 'import'.length, '__sandyard.import');
        if (node.type === 'MetaProperty' && node.meta.name === 'import') replace(node.start, node.end, '__sandyard.meta()');
    });
    edits.sort((a, b) => b.start - a.start || b.end - a.end);
    for (const { start, end, by } of edits) text = text.slice(0, start) + by + text.slice(end);
    return text;
}

// Lines stay where they are, for the numbers in stack traces.
function importCall(text, node) {
    const source = text.slice(node.source.start, node.source.end);
    const attributes = (node.attributes ?? []).map((a) => text.slice(a.start, a.end));
    const options = attributes.length ? `, { with: { ${attributes.join(', ')} } }` : '';
    const call = `await __sandyard.import(${source}${options})`;
    const lines = '\n'.repeat(text.slice(node.start, node.end).split('\n').length - 1);
    const declarations = [];
    const members = [];
    for (const specifier of node.specifiers) {
        const local = specifier.local.name;
        if (specifier.type === 'ImportNamespaceSpecifier') declarations.push(local);
        else if (specifier.type === 'ImportDefaultSpecifier') members.push(`default: ${local}`);
        else members.push(`${text.slice(specifier.imported.start, specifier.imported.end)}: ${local}`);
    }
    if (declarations.length === 0 && members.length === 0) return `${call};${lines}`;
    let statement;
    if (declarations.length) {
        statement = `var ${declarations[0]} = ${call};`;
        if (members.length) statement += ` var { ${members.join(', ')} } = ${declarations[0]};`;
    } else {
        statement = `var { ${members.join(', ')} } = ${call};`;
    }
    return statement + lines;
}

function walk(node, visit) {
    if (Array.isArray(node)) {
        for (const child of node) walk(child, visit);
    } else if (node && typeof node.type === 'string') {
        visit(node);
        for (const key of Object.keys(node)) {
            if (typeof node[key] === 'object') walk(node[key], visit);
        }
    }
}

module.exports = { toScript };

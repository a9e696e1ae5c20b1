#!/usr/bin/env python3
"""Seeds and dictionaries for the fuzz targets, from the golden models, the configs and the sources.

    seeds.py TARGET FOLDER     writes FOLDER/seeds/* and FOLDER/dictionary
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JSON = ['"{"', '"}"', '"["', '"]"', '":"', '","', '"\\"dtype\\""', '"\\"shape\\""', '"null"',
        '"\\"data_offsets\\""', '"\\"__metadata__\\""', '"\\"F32\\""', '"\\"BF16\\""', '"true"',
        '"\\"weight_map\\""', '".safetensors"', '"../"', '"\\\\u0000"', '"\\\\ud800"', '"1e400"',
        '"-1"', '"4294967296"', '"9007199254740993"', '"18446744073709551616"']
YAML = ['"\\x0a  "', '": "', '"? "', '"- "', '"!!"', '"&a"', '"*a"', '"[{name: "', '"~"', '"|"',
        '">"', '"%YAML 1.1"', '"---"', '"..."', '"\\xef\\xbb\\xbf"', '"\\xe2\\x80\\xa8"',
        '"\\xc2\\x85"', '"\\x00unlearn."', '"1.0e-3"', '"18446744073709551615"']


def texts_in(source):
    """The string literals of a C file that look like keys, and names in the config's table."""
    text = (ROOT / source).read_text()
    names = set(re.findall(r'"([a-z_.0-9]{3,40})"', text))
    names |= set(re.findall(r'^ *(?:PATH|INTEGER|NUMBER|BOOL|ENUM)\(([a-z_.0-9]+)', text, re.M))
    return sorted(names | {name.split('.')[-1] for name in names} - {''})


def safetensors():
    small = [p for p in ROOT.glob('tests/golden/*/model.safetensors') if p.stat().st_size < 60000]
    header = (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"x":"y"},'
              b'"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]},'
              b'"c":{"dtype":"I64","shape":[],"data_offsets":[12,20]},'
              b'"d":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[20,20]}}')
    return [p.read_bytes() for p in small] + [header + b'\0' + bytes(range(20))], JSON


def weights():
    index = (b'{"metadata":{"total_size":16},'
             b'"weight_map":{"a":"a.safetensors","b":"b.safetensors"}}')
    config = b'{"torch_dtype":"bfloat16","dtype":"float32","x":[1,{"y":"\\""}]}'
    return [index + b'\0' + config, index.replace(b'"a.s', b'"../a.s')], JSON


FIELDS = ['src/model/arch.c', 'src/model/family.c', 'src/model/rope_fields.c']


def arch():
    words = ['"\\"%s\\""' % name for source in FIELDS for name in texts_in(source)]
    return [p.read_bytes() for p in ROOT.glob('tests/golden/*/config.json')], JSON + words


def stored():
    seeds = []
    for golden in ROOT.glob('tests/golden/*/config.json'):
        data = (golden.parent / 'model.safetensors').read_bytes()
        header = json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])
        tensors = b''.join(name.encode() + bytes([0, *(tensor['shape'] + [0])[:2], 0, 1])
                           for name, tensor in header.items() if name != '__metadata__')
        seeds.append(b'\0' + golden.read_bytes() + b'\0' + tensors)
    names = ['"lm_head.weight\\x00"', '"embed_out.weight\\x00"', '"model."', '"gpt_neox."',
             '"model.embed_tokens.weight\\x00"', '"gpt_neox.embed_in.weight\\x00"',
             '"rotary_emb.inv_freq\\x00"', '"\\"tie_word_embeddings\\":true"']
    return seeds + [b'\x87' + seed[1:] for seed in seeds[:1]], JSON + arch()[1] + names


def config():
    files = [b'\0' + p.read_bytes() for p in ROOT.glob('configs/**/*.yaml')]
    demo = b'\0' + (ROOT / 'configs/demo/mudman.yaml').read_bytes()
    attacks = (b'relearn.attacks=[{name: a, lr: 1.0e-3, optimizer: adamw},'
               b'{name: b, lora_rank: 8}]')
    files.append(b'\0'.join([demo, b'unlearn.adv_lr=0.1', attacks, b'seed=7']))
    return files, YAML + ['"%s"' % name for name in texts_in('src/config/table.c')]


def trials():
    lines = (b'{"id":1,"overrides":{"unlearn.adv_lr":0.01,"unlearn.loops":3}}\n{"prune":true}\n'
             b'{"id":{"a":[1]},"overrides":{"unlearn.target_modules":["gate_proj"],'
             b'"relearn.attacks":[{"name":"a","lr":0.1}],"evaluate.batches":2}}')
    return [b'\xff' + lines, b'\x05' + lines], JSON + config()[1] + ['"\\"overrides\\""', '"\\x0a"']


def built():
    """Targets that build their files from the input."""
    return [bytes(40), bytes(range(1, 120)), b'\xff' * 60], []


def main():
    target, folder = sys.argv[1], Path(sys.argv[2])
    seeds, words = globals().get(target, built)()
    (folder / 'seeds').mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds):
        (folder / 'seeds' / str(i)).write_bytes(seed)
    (folder / 'dictionary').write_text(''.join(word + '\n' for word in words))


if __name__ == '__main__':
    main()

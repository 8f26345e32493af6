"""Fifty pieces of ordinary data analysis, and what the last line gives. Those that import a package are skipped where the jail lacks it."""

# ruff: noqa: E501 - the code of a snippet is one string

from __future__ import annotations

SNIPPETS: tuple[tuple[str, str], ...] = (
    ("2 ** 100", "1267650600228229401496703205376"),
    ("sum(range(101))", "5050"),
    ("import math\nround(math.pi, 5)", "3.14159"),
    ("from statistics import mean, median, stdev\nx = [2, 4, 4, 4, 5, 5, 7, 9]\nmean(x), median(x), round(stdev(x), 3)", "(5, 4.5, 2.138)"),
    ("from collections import Counter\nCounter('mississippi').most_common(2)", "[('i', 4), ('s', 4)]"),
    ("from fractions import Fraction\nFraction(1, 3) + Fraction(1, 6)", "Fraction(1, 2)"),
    ("from decimal import Decimal\nDecimal('0.1') + Decimal('0.2')", "Decimal('0.3')"),
    ("import datetime as dt\n(dt.date(2024, 7, 23) - dt.date(2023, 7, 18)).days", "371"),
    ("import json\njson.loads(json.dumps({'a': [1, 2, {'b': None}]}))", "{'a': [1, 2, {'b': None}]}"),
    ("import csv, io\nlist(csv.DictReader(io.StringIO('a,b\\n1,2\\n3,4')))", "[{'a': '1', 'b': '2'}, {'a': '3', 'b': '4'}]"),
    ("import re\nre.findall(r'\\d+', 'a1b22c333')", "['1', '22', '333']"),
    ("import itertools\nlen(list(itertools.permutations(range(5))))", "120"),
    ("import functools\nfunctools.reduce(lambda a, b: a * b, range(1, 11))", "3628800"),
    ("import random\nrandom.seed(0)\nrandom.randint(1, 100)", "50"),
    ("import hashlib\nhashlib.sha256(b'herd').hexdigest()[:8]", "'b3f0b4a7'"),
    ("import base64, zlib\nzlib.decompress(base64.b64decode(base64.b64encode(zlib.compress(b'x' * 1000))))[:3]", "b'xxx'"),
    (
        "import sqlite3\ndb = sqlite3.connect(':memory:')\ndb.execute('create table t (a)')\ndb.executemany('insert into t values (?)', [(i,) for i in range(10)])\ndb.execute('select sum(a) from t').fetchone()",
        "(45,)",
    ),
    ("import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(b'abc')\n    f.seek(0)\n    got = f.read()\ngot", "b'abc'"),
    ("from pathlib import Path\nPath('t.txt').write_text('héllo', encoding='utf-8')\nPath('t.txt').read_text(encoding='utf-8')", "'héllo'"),
    (
        "import zipfile\nwith zipfile.ZipFile('z.zip', 'w') as z:\n    z.writestr('a.txt', 'x')\nzipfile.ZipFile('z.zip').namelist()",
        "['a.txt']",
    ),
    ("import subprocess\nsubprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout", "'hi\\n'"),
    (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n    got = list(pool.map(lambda x: x * x, range(5)))\ngot",
        "[0, 1, 4, 9, 16]",
    ),
    (
        "import multiprocessing as mp\nr, w = mp.Pipe(False)\np = mp.get_context('fork').Process(target=w.send, args=(42,))\np.start(); p.join()\nr.recv()",
        "42",
    ),
    ("import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 'done'\nasyncio.run(f())", "'done'"),
    ("import asyncio\nawait asyncio.sleep(0, 'awaited')", "'awaited'"),
    ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(3)", "P(x=3)"),
    ("import pickle\nclass Q:\n    v = 7\npickle.loads(pickle.dumps(Q())).v", "7"),
    ("import ctypes\nctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)(41)", "42"),
    ("import inspect\ndef g(a, b=2): return a + b\ninspect.getsource(g).strip()", "'def g(a, b=2): return a + b'"),
    ("import platform\nplatform.system()", "'Linux'"),
    ("import numpy as np\nnp.arange(12).reshape(3, 4).sum(axis=0).tolist()", "[12, 15, 18, 21]"),
    ("import numpy as np\nnp.linalg.solve([[3, 1], [1, 2]], [9, 8]).round(6).tolist()", "[2.0, 3.0]"),
    ("import numpy as np\nnp.linalg.eigvalsh([[2, 0], [0, 5]]).round(6).tolist()", "[2.0, 5.0]"),
    ("import numpy as np\n(np.random.default_rng(0).random((300, 300)) @ np.eye(300)).shape", "(300, 300)"),
    ("import numpy as np\nnp.polyfit([0, 1, 2], [1, 3, 5], 1).round(6).tolist()", "[2.0, 1.0]"),
    ("import numpy as np\nabs(np.fft.fft(np.sin(np.linspace(0, 2 * np.pi, 64, endpoint=False)))).argmax().item()", "1"),
    ("import numpy as np\nnp.percentile(np.arange(101), [25, 50, 75]).tolist()", "[25.0, 50.0, 75.0]"),
    ("import numpy as np\nnp.save('a.npy', np.arange(3))\nnp.load('a.npy').tolist()", "[0, 1, 2]"),
    ("import numpy as np\nnp.corrcoef([1, 2, 3], [2, 4, 6]).round(6).tolist()", "[[1.0, 1.0], [1.0, 1.0]]"),
    ("import pandas as pd\ndf = pd.DataFrame({'k': list('aab'), 'v': [1, 2, 3]})\ndf.groupby('k').v.sum().to_dict()", "{'a': 3, 'b': 3}"),
    ("import pandas as pd, io\npd.read_csv(io.StringIO('a,b\\n1,2\\n3,4')).describe().loc['mean'].tolist()", "[2.0, 3.0]"),
    ("import pandas as pd\ndf = pd.DataFrame({'x': range(5)})\ndf.to_csv('d.csv', index=False)\npd.read_csv('d.csv').x.sum().item()", "10"),
    ("import pandas as pd\npd.date_range('2024-01-01', periods=3, freq='D').strftime('%d').tolist()", "['01', '02', '03']"),
    (
        "import pandas as pd\na = pd.DataFrame({'k': [1, 2], 'x': [3, 4]})\na.merge(pd.DataFrame({'k': [2], 'y': [9]}), on='k').to_dict('records')",
        "[{'k': 2, 'x': 4, 'y': 9}]",
    ),
    (
        "import pandas as pd\npd.DataFrame({'d': ['x', 'y'], 'm': ['p', 'p'], 'v': [1, 2]}).pivot(index='d', columns='m', values='v').p.tolist()",
        "[1, 2]",
    ),
    ("import pandas as pd\npd.Series([1, None, 3]).fillna(0).rolling(2).mean().tolist()[1:]", "[0.5, 1.5]"),
    ("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.title('squares')\nplt.show()", ""),
    (
        "import matplotlib.pyplot as plt, numpy as np\nfig, ax = plt.subplots(1, 2)\nax[0].hist(np.arange(50))\nax[1].scatter([1, 2], [3, 4])\nplt.savefig('fig.png')\nplt.close()",
        "",
    ),
    (
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.bar(['a', 'b'], [1, 2])\nfig.canvas.get_supported_filetypes()['png']",
        "'Portable Network Graphics'",
    ),
    ("print('ü'.encode('unicode_escape'))\n'日本' + chr(128202)", "'日本📊'"),
)

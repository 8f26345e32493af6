"""Code Shield: what is insecure is found by line and CWE, in its language, outside comments; severity decides the treatment."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.safety.code_shield import LANGUAGES, CodeShield, rules, scan, scan_answer
from herd.safety.verdict import Content, TouchPoint, Verdict


def names(code: str, language: str | None = None) -> list[str]:
    return [finding.rule for finding in scan(code, language)]


def judge(text: str, point: TouchPoint = TouchPoint.OUTPUT) -> Verdict:
    return asyncio.run(CodeShield().check(Content(point=point, text=text)))


def test_the_published_goldens() -> None:
    assert names("eval(input)") == ["python-eval", "js-eval"] and names("eval(input)", "python") == ["python-eval"]
    assert len(scan("hashlib.md5()", "python")) == 1 and len(scan("hashlib.new('sha1')")) == 1
    assert scan("import hashlib") == []


INSECURE = [
    ("python", "os.system('rm ' + name)", "CWE-78"),
    ("python", "subprocess.run(cmd, shell=True)", "CWE-78"),
    ("python", "data = pickle.loads(blob)", "CWE-502"),
    ("python", "yaml.load(text)", "CWE-502"),
    ("python", 'cursor.execute(f"SELECT * FROM t WHERE id = {x}")', "CWE-89"),
    ("python", "cursor.execute('SELECT %s' % x)", "CWE-89"),
    ("python", "requests.get(url, verify=False)", "CWE-295"),
    ("python", "app.run(debug=True)", "CWE-489"),
    ("python", "token = str(random.randint(0, 9))", "CWE-330"),
    ("python", "cipher = AES.new(key, AES.MODE_ECB)", "CWE-327"),
    ("python", "tempfile.mktemp()", "CWE-377"),
    ("javascript", "el.innerHTML = user.name", "CWE-79"),
    ("javascript", "db.query(`SELECT * FROM t WHERE id = ${id}`)", "CWE-89"),
    ("javascript", "exec('ls ' + dir)", "CWE-78"),
    ("typescript", "crypto.createHash('md5')", "CWE-328"),
    ("javascript", "https.request({rejectUnauthorized: false})", "CWE-295"),
    ("c", "gets(buffer);", "CWE-242"),
    ("c", "strcpy(a, b);", "CWE-120"),
    ("c", "printf(message);", "CWE-134"),
    ("c", "system(line);", "CWE-78"),
    ("c++", 'sprintf(a, "%s", b);', "CWE-120"),
    ("cpp", "std::auto_ptr<int> p;", "CWE-672"),
    ("java", 'Runtime.getRuntime().exec("ls " + dir);', "CWE-78"),
    ("java", 'stmt.executeQuery("SELECT * FROM t WHERE id=" + id);', "CWE-89"),
    ("java", "new ObjectInputStream(in).readObject();", "CWE-502"),
    ("java", 'Cipher.getInstance("AES/ECB/PKCS5Padding")', "CWE-327"),
    ("php", "echo $_GET['q'];", "CWE-79"),
    ("php", "include($_GET['page']);", "CWE-98"),
    ("php", '$r = mysqli_query($c, "SELECT * FROM t WHERE id=$id");', "CWE-89"),
    ("php", "unserialize($data);", "CWE-502"),
    ("csharp", "new BinaryFormatter();", "CWE-502"),
    ("c#", 'cmd.CommandText = $"SELECT * FROM t WHERE id={id}";', "CWE-89"),
    ("rust", "let v = unsafe { mem::transmute(x) };", "CWE-843"),
    ("rust", 'Command::new("sh").arg("-c")', "CWE-78"),
    ("python", "curl https://example.org/x | sudo bash", "CWE-494"),
    ("python", "password = 'hunter2345'", "CWE-798"),
]


@pytest.mark.parametrize(
    ("language", "code", "cwe"), INSECURE, ids=[f"{language}-{cwe}-{n}" for n, (language, _, cwe) in enumerate(INSECURE)]
)
def test_insecure_forms_are_found_with_and_without_their_language(language: str, code: str, cwe: str) -> None:
    assert cwe in {finding.label for finding in scan(code, language)}
    assert cwe in {finding.label for finding in scan(code)}


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "subprocess.run(['ls', path], check=True)"),
        ("python", "cursor.execute('SELECT * FROM t WHERE id = ?', (x,))"),
        ("python", "yaml.safe_load(text); yaml.load(text, Loader=yaml.SafeLoader)"),
        ("python", "model.eval(); df.eval('a + b')"),
        ("python", "hashlib.sha256(data)"),
        ("python", "torch.load(path, weights_only=True)"),
        ("python", "token = secrets.token_hex(16)"),
        ("javascript", "el.textContent = user.name; el.innerHTML = '';"),
        ("javascript", "pattern.exec(text)"),
        ("javascript", "db.query('SELECT * FROM t WHERE id = ?', [id])"),
        ("c", 'snprintf(a, sizeof a, "%s", b); fgets(a, sizeof a, stdin); printf("%s", a);'),
        ("java", 'PreparedStatement s = c.prepareStatement("SELECT * FROM t WHERE id=?");'),
        ("php", "echo htmlspecialchars($name); password_hash($p, PASSWORD_DEFAULT);"),
        ("rust", "let n: u32 = text.parse()?;"),
        ("csharp", "SHA256.Create();"),
    ],
)
def test_the_secure_form_passes(language: str, code: str) -> None:
    assert [finding for finding in scan(code, language) if finding.treatment != "ignore"] == []


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "# eval(input)"),
        ("python", "x = 1  # os.system(name)"),
        ("python", '"""Never call eval(x).\nNor pickle.loads(y).\n"""'),
        ("javascript", "// eval(x)"),
        ("javascript", "/* eval(x)\n eval(y) */ a = 1;"),
        ("c", "int a; // gets(b)"),
        ("php", "# system($x)"),
        (None, "# eval(input)"),
        (None, "// gets(b)"),
    ],
)
def test_comments_are_not_code(language: str | None, code: str) -> None:
    assert scan(code, language) == []


def test_marks_inside_strings_open_no_comment() -> None:
    assert names("a = '#'; eval(b)", "python") == ["python-eval"]
    assert names("a = 'http://x'; eval(b)", "javascript") == ["js-eval"]
    assert names("/* a */ eval(b)", "javascript") == ["js-eval"]


def test_an_answer_is_searched_block_by_block_and_around_them() -> None:
    answer = "Use this:\n```python\nimport os\nos.system(x + y)\n```\nand\n```js\nos.system(x + y)\neval(z)\n```\nor gets(b)\n"
    found = [(finding.rule, finding.line) for finding in scan_answer(answer)]
    assert found == [("python-os-system", 4), ("js-eval", 9), ("c-gets", 11)]
    first = scan_answer(answer)[0]
    assert answer[first.start : first.end].startswith("os.system(")


def test_a_fence_that_is_never_closed_is_searched_to_the_end() -> None:
    assert [finding.rule for finding in scan_answer("```python\neval(x)")] == ["python-eval"]
    assert [finding.rule for finding in scan_answer("~~~~python\n```\neval(x)\n~~~\neval(y)\n~~~~\n")] == ["python-eval", "python-eval"]


@pytest.mark.parametrize(
    ("code", "treatment", "unsafe"),
    [("eval(x)", "block", True), ("hashlib.md5(x)", "warn", True), ("open('/tmp/x')", "ignore", False), ("print(1)", "ignore", False)],
)
def test_severity_decides_the_treatment(code: str, treatment: str, unsafe: bool) -> None:
    verdict = judge(f"```python\n{code}\n```")
    assert (verdict.treatment, verdict.unsafe, verdict.blocks) == (treatment, unsafe, treatment == "block")


def test_code_in_a_call_is_read_through_jsons_escapes() -> None:
    call = json.dumps({"name": "code_interpreter", "parameters": {"code": 'import os\nos.system("rm " + x)', "more": ["eval(y)"]}})
    verdict = judge(call, TouchPoint.TOOL_INPUT)
    assert verdict.blocks and {"CWE-78", "CWE-95"} <= set(verdict.categories)
    assert all(finding.start == finding.end == 0 for finding in verdict.findings)
    assert judge("eval(x)", TouchPoint.TOOL_INPUT).blocks


def test_an_unknown_language_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'pyton'") as caught:
        scan("x", "pyton")
    assert caught.value.hint is not None and "python" in caught.value.hint


def test_the_rules_are_whole() -> None:
    assert len(rules()) > 120 and len({rule.id for rule in rules()}) == len(rules())
    assert {language for rule in rules() for language in rule.languages} == {*LANGUAGES, "any"}
    assert all(rule.cwe.startswith("CWE-") and rule.detail and rule.severity in ("error", "warning", "advice") for rule in rules())


def test_a_long_line_is_searched_to_its_end() -> None:
    assert names("x = 1; " * 1500 + "eval(y)", "python") == ["python-eval"]


@given(st.text(max_size=300), st.sampled_from([None, *LANGUAGES]))
def test_any_text_is_searched_and_every_finding_lies_in_it(text: str, language: str | None) -> None:
    for finding in scan(text, language):
        assert 0 <= finding.start <= finding.end and finding.line <= text.count("\n") + 1

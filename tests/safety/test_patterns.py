"""Personal data and secrets: found where they are, with their check digits, and not where numbers only look like them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.safety.patterns import PERSONAL, is_card, is_iban, pii_shield, regex_shield, search, secret_patterns, secret_shield
from herd.safety.verdict import redact


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to anna.k+x@mail.example.org!", "write to [email]!"),
        ("card 4111 1111 1111 1111, please", "card [card], please"),
        ("card 378282246310005", "card [card]"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [iban]."),
        ("GB82WEST12345698765432", "[iban]"),
        ("call +49 30 1234567 today", "call [phone] today"),
        ("call +1 (415) 555-2671", "call [phone]"),
        ("415-555-2671", "[phone]"),
        ("from 203.0.113.7 to 2001:db8::7", "from [ip] to [ip]"),
        ("SSN 123-45-6789", "SSN [national-id]"),
    ],
)
def test_personal_data_is_redacted(text: str, redacted: str) -> None:
    assert redact(text, pii_shield().judge(text).findings) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "on 2024-11-05 and 05.11.2024",
        "version 1.2.3.400",
        "127.0.0.1 and ::1",
        "a@b",
        "@anna",
        "std::vector<int>::size",
        "000-12-3456",
        "It costs 1,234,567 euros, 12.5 % more than 1999.",
        "12:30:45",
        "x = [1, 2, 3]; y = 100000000000000000000000",
    ],
)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert pii_shield().judge(text).findings == ()


@given(st.lists(st.integers(0, 9), min_size=12, max_size=18).filter(lambda digits: len(set(digits)) > 1))
def test_one_check_digit_of_ten_makes_a_card(digits: list[int]) -> None:
    body = "".join(map(str, digits))
    assert sum(is_card(f"{body}{digit}") for digit in range(10)) == 1


@given(st.text(alphabet="0123456789", min_size=11, max_size=30))
def test_an_account_with_a_digit_changed_is_none(body: str) -> None:
    number = int("".join(str(int(character, 36)) for character in f"{body}DE00")) % 97
    iban = f"DE{98 - number:02d}{body}"
    assert is_iban(iban)
    changed = iban[:-1] + ("1" if iban[-1] != "1" else "2")
    assert not is_iban(changed)


B64 = "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzA1bC2dE3fG4hJ5kL6mN7pQ8rS9tU0vWxYzAbCdEfGhJkLmNpQrStUvWxYz12345678"
HEX = "0123456789abcdef" * 8
SECRETS = {
    "private-key": "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----",
    "aws-access-key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "aws-secret-key": f"aws_secret_access_key = {B64[:40]}",
    "github-token": "ghp_" + B64[:36],
    "github-fine-grained-token": "github_pat_" + B64[:82],
    "gitlab-token": "glpat-" + B64[:20],
    "slack-token": "xoxb-" + "123456789012-" + B64[:24],
    "slack-webhook": "https://hooks.slack.com/services/T00000000/B00000000/" + B64[:24],
    "discord-webhook": "https://discord.com/api/webhooks/123456789012345678/" + B64[:68],
    "telegram-bot-token": "123456789:AA" + B64[:33],
    "openai-key": "sk-proj-" + B64[:48],
    "anthropic-key": "sk-ant-api03-" + B64[:80],
    "huggingface-token": "hf_" + B64[:34],
    "google-api-key": "AIza" + B64[:35],
    "azure-storage-key": "AccountKey=" + B64[:86] + "==",
    "stripe-key": "sk_live_" + B64[:24],
    "shopify-token": "shpat_" + HEX[:32],
    "sendgrid-key": "SG." + B64[:22] + "." + B64[:43],
    "npm-token": "npm_" + B64[:36],
    "pypi-token": "pypi-AgE" + B64[:60],
    "digitalocean-token": "dop_v1_" + HEX[:64],
    "databricks-token": "dapi" + HEX[:32],
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + B64[:43],
    "url-password": "postgres://anna:hunter22@db.example.org/x",
    "assigned-secret": 'password = "c0rrect-horse"',
    "bearer-header": "Authorization: Bearer " + B64[:30],
}


@pytest.mark.parametrize(("rule", "secret"), SECRETS.items(), ids=SECRETS)
def test_secrets_of_providers_are_found_and_leave_nothing_when_redacted(rule: str, secret: str) -> None:
    text = f"here: {secret}\nend"
    verdict = secret_shield().judge(text)
    assert verdict.blocks and rule in {finding.rule for finding in verdict.findings}
    changed = redact(text, secret_shield(action="redact").judge(text).findings)
    assert "[secret]" in changed
    assert not any(piece in changed for piece in (B64[:20], HEX[:32], "hunter22", "c0rrect-horse", "MIIB"))


@pytest.mark.parametrize(
    "text", ["sk-learn is a library", "password: ask your admin", "the token ring", "key-value", "hf_hub", "https://example.org/a:b@c"]
)
def test_words_about_secrets_are_none(text: str) -> None:
    assert not secret_shield().judge(text).unsafe


def test_a_verdict_tells_lines_and_never_the_secret() -> None:
    secret = SECRETS["github-token"]
    verdict = secret_shield().judge(f"one\ntwo {secret}")
    assert verdict.findings[0].line == 2
    assert secret not in repr(verdict.to_dict())


def test_own_rules_and_actions() -> None:
    shield = regex_shield({"codename": "Apollo"}, action="warn")
    verdict = shield.judge("Apollo starts")
    assert verdict.unsafe and not verdict.blocks and verdict.categories == ("codename",)
    with pytest.raises(ConfigError, match="rule 'x'"):
        regex_shield({"x": "("})
    with pytest.raises(ConfigError, match="unknown kind 'emial'"):
        pii_shield(kinds=["emial"])
    assert pii_shield(kinds=["email"]).judge("203.0.113.7").findings == ()


@pytest.mark.parametrize(
    "text",
    [
        "a@" * 50_000,
        "1 " * 50_000,
        "-----BEGIN PRIVATE KEY-----" * 500,
        "a.b+" * 25_000,
        "eyJ" * 30_000,
        "::" * 50_000,
        "http://a:" * 10_000,
    ],
)
def test_no_text_makes_the_patterns_run_away(text: str) -> None:
    started = time.process_time()
    list(search(text, [*PERSONAL, *secret_patterns()]))
    assert time.process_time() - started < 20.0

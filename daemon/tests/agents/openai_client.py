"""The official `openai` client against Dormouse. Prints what it saw as one line of JSON.

Arguments: BASE_URL KEY MODEL SESSION
"""

import json
import sys

import openai


def main():
    base_url, key, model, session = sys.argv[1:]
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=90,
                           default_headers={"Dormouse-Session": session})
    seen = {"models": [model.id for model in client.models.list()]}

    def ask(text, **options):
        messages = [{"role": "user", "content": text}]
        return client.chat.completions.create(model=model, messages=messages, **options)

    whole = ask("say one two three")
    seen["whole"] = whole.choices[0].message.content
    seen["finish_reason"] = whole.choices[0].finish_reason
    seen["role"] = whole.choices[0].message.role

    pieces, last = [], None
    for chunk in ask("say four five six", stream=True):
        choice = chunk.choices[0]
        if choice.delta.content:
            pieces.append(choice.delta.content)
        last = choice.finish_reason or last
    seen["pieces"], seen["stream_finish_reason"] = pieces, last

    try:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        seen["unknown_model"] = "answered"
    except openai.NotFoundError as error:
        seen["unknown_model"] = {"status": error.status_code, "code": error.code}
    try:
        openai.OpenAI(base_url=base_url, api_key="dm_wrong", max_retries=0).models.list()
        seen["wrong_key"] = "answered"
    except openai.AuthenticationError as error:
        seen["wrong_key"] = {"status": error.status_code, "code": error.code}
    try:
        ask("x", n=2)
        seen["two_answers"] = "answered"
    except openai.UnprocessableEntityError as error:
        seen["two_answers"] = {"status": error.status_code, "code": error.code}

    # The same key names the same message, as with every way in.
    headers = {"Idempotency-Key": "the-key"}
    ids = {ask("once only", extra_headers=headers).id for _ in range(2)}
    seen["ids_of_one_key"] = len(ids)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()

"""The prompt pool: for each task, paraphrases in English and one in each other language of the world.

A line is `language: prompt`; a star marks the paraphrase that no training ever sees. `{language}` is replaced by the
name of the target language, `{context}` by a short text in the language of the request.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """An instruction, its language, and whether it is kept for the test of unseen paraphrases."""

    language: str
    text: str
    held_out: bool = False


def pool(lines: str) -> tuple[Prompt, ...]:
    """Parses the lines of a task."""
    prompts = []
    for line in lines.strip().splitlines():
        language, _, text = line.strip().partition(": ")
        prompts.append(Prompt(language.strip("*"), text, held_out=language.startswith("*")))
    return tuple(prompts)


PROMPTS = {
    "transcribe": pool("""
        en: Transcribe the request.
        en: Write down what was said.
        en: What did the speaker say?
        en: Repeat the request word for word.
        en: Transcribe the speech.
        *en: Write down the speech word for word.
        zh: 写下说的话。
        vi: Hãy chép lại lời nói.
        id: Tuliskan apa yang dikatakan.
        es: Transcribe lo que se dijo.
        de: Schreibe auf, was gesagt wurde.
    """),
    "translate": pool("""
        en: Translate the request into {language}.
        en: Translate into {language}.
        en: Say it in {language}.
        en: What is this in {language}?
        en: Give the {language} translation.
        *en: Give the request in {language}.
        zh: 翻译成{language}。
        vi: Dịch sang {language}.
        id: Terjemahkan ke {language}.
        es: Traduce al {language}.
        de: Übersetze: {language}.
    """),
    "intent": pool("""
        en: What is the intent?
        en: Name the intent of the request.
        en: Which kind of request is it?
        en: Classify the request.
        en: What does the speaker want?
        *en: Which intent is it?
        zh: 意图是什么？
        vi: Ý định là gì?
        id: Apa maksudnya?
        es: ¿Cuál es la intención?
        de: Was ist die Absicht?
    """),
    "device": pool("""
        en: Which device is meant?
        en: Name the device.
        en: What device is it about?
        en: Which device does the speaker mention?
        en: Device?
        *en: Name the device the speaker mentions.
        zh: 是哪个设备？
        vi: Thiết bị nào?
        id: Perangkat apa?
        es: ¿Qué aparato?
        de: Welches Gerät ist gemeint?
    """),
    "place": pool("""
        en: Which place is meant?
        en: Name the room or place.
        en: Where?
        en: What place is it about?
        en: Which place does the speaker mention?
        *en: Name the place the speaker mentions.
        zh: 是哪个地方？
        vi: Nơi nào?
        id: Tempat mana?
        es: ¿Qué lugar?
        de: Welcher Ort ist gemeint?
    """),
    "number": pool("""
        en: Which number is mentioned?
        en: Write the number in digits.
        en: How many, or at what time?
        en: Give the number.
        en: What number does the speaker say?
        *en: Give the number in digits.
        zh: 是什么数字？
        vi: Số mấy?
        id: Angka berapa?
        es: ¿Qué número es?
        de: Welche Zahl wird genannt?
    """),
    "sum": pool("""
        en: Answer the question with a number.
        en: What is the result?
        en: Work it out.
        en: Give the answer in digits.
        en: Solve the sum.
        *en: Answer the sum.
        zh: 结果是多少？
        vi: Kết quả là mấy?
        id: Berapa hasilnya?
        es: ¿Cuál es el resultado?
        de: Was ist das Ergebnis?
    """),
    "colour": pool("""
        en: Which colour is meant?
        en: Name the colour.
        en: What colour should it be?
        en: Which colour does the speaker want?
        en: Colour?
        *en: Name the colour the speaker wants.
        zh: 什么颜色？
        vi: Màu nào?
        id: Warna apa?
        es: ¿Qué color?
        de: Welche Farbe ist gemeint?
    """),
    "day": pool("""
        en: Which day is meant?
        en: Name the day.
        en: On what day?
        en: Which day does the speaker mention?
        en: Day?
        *en: Name the day the speaker mentions.
        zh: 哪一天？
        vi: Ngày nào?
        id: Hari apa?
        es: ¿Qué día?
        de: Welcher Tag ist gemeint?
    """),
    "first_word": pool("""
        en: What is the first word?
        en: Give the first word of the request.
        en: Write only the first word.
        en: Which word comes first?
        en: First word?
        *en: Name the first word.
        zh: 第一个词是什么？
        vi: Từ đầu tiên là gì?
        id: Apa kata pertama?
        es: ¿Cuál es la primera palabra?
        de: Was ist das erste Wort?
    """),
    "last_word": pool("""
        en: What is the last word?
        en: Give the last word of the request.
        en: Write only the last word.
        en: Which word comes last?
        en: Last word?
        *en: Name the last word.
        zh: 最后一个词是什么？
        vi: Từ cuối cùng là gì?
        id: Apa kata terakhir?
        es: ¿Cuál es la última palabra?
        de: Was ist das letzte Wort?
    """),
    "count_words": pool("""
        en: Count the words.
        en: How many words are there?
        en: How many words does the speaker say?
        en: Give the number of words.
        en: How long is the request in words?
        *en: How many words does the request have?
        zh: 有几个词？
        vi: Có bao nhiêu từ?
        id: Ada berapa kata?
        es: ¿Cuántas palabras hay?
        de: Wie viele Wörter sind es?
    """),
    "language": pool("""
        en: Which language is it?
        en: Name the language.
        en: What language does the speaker use?
        en: In which language is the request?
        en: Language?
        *en: Name the language of the request.
        zh: 是什么语言？
        vi: Ngôn ngữ nào?
        id: Bahasa apa?
        es: ¿Qué idioma es?
        de: Welche Sprache ist es?
    """),
    "context": pool("""
        en: Text: {context}. Answer from the text.
        en: {context}. Use this to answer.
        en: Read this: {context}. What is the answer?
        en: We know: {context}. Answer the question.
        en: Given this text: {context}. Answer the speaker.
        *en: {context}. Answer the speaker from the text.
        zh: {context}。根据这些回答。
        vi: Văn bản: {context}. Hãy trả lời.
        id: Teks: {context}. Jawablah.
        es: Texto: {context}. Responde.
        de: Text: {context}. Antworte.
    """),
}

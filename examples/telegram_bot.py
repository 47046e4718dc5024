"""A Telegram bot that answers a voice message with its words. To be run in a clone of this repository.

pip install python-telegram-bot .
LOCALWHISPER_BASE_URL=http://pc:5000/v1 TELEGRAM_TOKEN=… python examples/telegram_bot.py
"""

import io
import os

import openai
from telegram import Update
from telegram.ext import Application, ContextTypes, MessageHandler, filters

import localwhisper

client = localwhisper.AsyncLocalWhisper()


async def handle_voice(update: Update, _context: ContextTypes.DEFAULT_TYPE) -> None:
    """Answer one voice message with its words, or with the reason why there are none."""
    message = update.effective_message
    if message is None or message.voice is None:
        return
    voice = await (await message.voice.get_file()).download_as_bytearray()
    try:
        transcript = await client.audio.transcriptions.create(
            file=("voice.oga", io.BytesIO(voice)), model="whisper-1", timeout=120
        )
    except openai.APIConnectionError as failure:
        await message.reply_text(f"The speech-to-text server cannot be reached. {failure}")
        return
    await message.reply_text(transcript.text or "(silence)")


def main() -> None:
    """Run the bot until it is stopped."""
    bot = Application.builder().token(os.environ["TELEGRAM_TOKEN"]).build()
    bot.add_handler(MessageHandler(filters.VOICE, handle_voice))
    bot.run_polling()


if __name__ == "__main__":
    main()

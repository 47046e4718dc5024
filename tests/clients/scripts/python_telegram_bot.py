"""python-telegram-bot as its documentation says: a handler downloads the voice message and gives it to the SDK."""

import importlib
import json
import os
import sys
from pathlib import Path

from telegram.ext import Application, MessageHandler, filters
from telegram_stand_in import TOKEN, telegram

openai = importlib.import_module(os.environ.get("SDK", "openai"))
client = openai.AsyncOpenAI()


async def handle_voice(update, context):
    voice = await (await update.message.voice.get_file()).download_as_bytearray()
    transcript = await client.audio.transcriptions.create(file=("voice.oga", bytes(voice)), model="whisper-1")
    await update.message.reply_text(transcript.text)
    context.application.stop_running()


with telegram(Path(sys.argv[1]).read_bytes()) as (url, replies):
    bot = Application.builder().token(TOKEN).base_url(f"{url}/bot").base_file_url(f"{url}/file/bot").build()
    bot.add_handler(MessageHandler(filters.VOICE, handle_voice))
    bot.run_polling()
print(json.dumps({"reply": replies[0]}))
